//! One object server with a device of its own, `sda1`, on the swift.conf of a folder.

use crate::peer::{self, Peer, Process};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A folder with a swift.conf of two replication policies and an EC one.
pub fn swift_dir() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::write(
        dir.path().join("swift.conf"),
        "[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n\
         [storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n\
         [storage-policy:2]\nname = ec\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n\
         ec_num_data_fragments = 4\nec_num_parity_fragments = 2\n",
    )?;
    Ok(dir)
}

/// The server's configuration file `NAME.conf` below `dir`.
pub fn write_conf(dir: &Path, name: &str, devices: &Path, port: u16, options: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(devices.join("sda1"))?;
    let conf = dir.join(format!("{name}.conf"));
    std::fs::write(
        &conf,
        format!(
            "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nmount_check = false\n\
             fallocate_reserve = 0\nswift_dir = {dir}\ndevices = {devices}\nlog_address = {dir}/nolog\n{options}\
             [pipeline:main]\npipeline = healthcheck backend_ratelimit object-server\n[filter:healthcheck]\n\
             use = egg:swift#healthcheck\n[filter:backend_ratelimit]\nuse = egg:swift#backend_ratelimit\n[app:object-server]\nuse = egg:swift#object\n",
            dir = dir.display(),
            devices = devices.display(),
        ),
    )?;
    Ok(conf)
}

/// The running server; its devices are in `dir/NAME`.
pub fn object_server(peer: Peer, dir: &Path, name: &str, port: u16, options: &str) -> Result<Process> {
    object_server_on(peer, dir, name, &dir.join(name), port, options)
}

pub fn object_server_on(
    peer: Peer,
    dir: &Path,
    name: &str,
    devices: &Path,
    port: u16,
    options: &str,
) -> Result<Process> {
    let conf = write_conf(dir, name, devices, port, options)?;
    let mut command = peer.command(dir, dir, "swift-object-server")?;
    let process = Process::spawn(name, command.arg(conf).stdin(Stdio::null()).stdout(Stdio::null()))?;
    peer::wait_for(([127, 0, 0, 1], port).into()).with_context(|| name.to_owned())?;
    Ok(process)
}
