//! A cluster of `martlet up` loses a node, changes meanwhile, and heals by SSYNC: the demo, on real source trees and with
//! the real `swift` client.

use anyhow::Result;
use probe::peer;
use probe::ports::{base_port, free_ports};
use std::process::Command;

#[test]
fn a_cluster_heals_after_a_node_was_away() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ports = free_ports(1)?;
    let packages = peer::venv()?
        .join("lib")
        .read_dir()?
        .next()
        .expect("a venv has a python folder")?
        .path()
        .join("site-packages");
    let mut demo = Command::new(peer::martlet()?);
    demo.arg("demo").arg("--data").arg(dir.path().join("demo")).args(["--port", &ports[0].to_string()]);
    demo.args(["--base-port", &base_port()?.to_string()]);
    demo.arg("--swift").arg(peer::venv()?.join("bin/swift")).arg("--tree").arg(peer::sdist()?);
    for package in ["pip", "boto", "keystoneclient", "eventlet"] {
        demo.arg("--tree").arg(packages.join(package));
    }
    println!("{}", peer::success(&mut demo)?);
    Ok(())
}
