//! `cargo xtask bench ec-stream`: one client, one connection, one object of 256 MiB at a time, erasure coded 4+2 through a proxy.
//!
//! Peers take turns, and of each verb the median round counts. Machines are shared: CPU seconds of all servers are printed beside the
//! wall time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use probe::load::{self, Until, Work};

use crate::pass::{Pass, print_head, print_row};
use crate::{Cli, Side, peers, proxy_side};

const LEN: usize = 256 << 20;
const ROUNDS: usize = 3;

pub async fn table(cli: &Cli, dir: &Path) -> Result<()> {
    print_head("one stream of 256 MiB through a proxy, erasure coded 4+2, fsync on");
    let body = vec![0x5a_u8; LEN];
    let mut sides = Vec::new();
    for peer in peers(cli) {
        sides.push(proxy_side(cli, peer, dir, "erasure").await?);
    }
    for verb in ["PUT", "GET"] {
        let mut passes = vec![Vec::new(); sides.len()];
        for round in 0..ROUNDS {
            for (side, passes) in sides.iter().zip(&mut passes) {
                let tag = format!("stream-{round}");
                passes.push(transfer(side, verb, &body, &tag).await?);
                // What has been written is no concern of the next one.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let medians: Vec<Pass> = passes.into_iter().map(median).collect();
        print_row(verb, &medians);
        let speeds: Vec<String> =
            medians.iter().map(|pass| format!("{:.0}", LEN as f64 / 1e6 / pass.wall)).collect();
        println!("MB/s: {}", speeds.join(" | "));
    }
    Ok(())
}

async fn transfer(side: &Side, verb: &'static str, body: &[u8], tag: &str) -> Result<Pass> {
    let work = Work {
        addr: side.addr,
        head: &|n| (side.head)(verb, LEN, n, tag),
        body: if verb == "PUT" { body } else { b"" },
        answer_has_body: true,
        expect: if verb == "PUT" { 201 } else { 200 },
        concurrency: 1,
        until: Until::Count(1),
    };
    let pids = side.servers.pids();
    let before = load::cpu_seconds(&pids);
    let peer = side.peer.name();
    let outcome = load::run(work).await.with_context(|| format!("{peer} {verb}"))?;
    ensure!(outcome.failures == 0, "{peer} {verb} failed");
    Ok(Pass { wall: outcome.seconds, cpu: load::cpu_seconds(&pids) - before })
}

/// By wall time.
fn median(mut passes: Vec<Pass>) -> Pass {
    passes.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    passes[passes.len() / 2]
}
