//! Ports for servers that a test names in a configuration and starts later.
//!
//! They lie below those that the kernel gives to clients, so that no connection takes one in between, and come in blocks of
//! [`BLOCK`]. A block is held, for as long as the process runs, by a socket of the abstract Unix address
//! `martlet-ports-<first port>`, which leaves nothing behind; `tests/peer/ports.py` holds its own in the same way.
//!
//! A server that can be given its listener needs none of this.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;

use anyhow::{Context, Result};

/// As many as a cluster of `martlet up` takes.
const BLOCK: u16 = 50;
const FIRST: u16 = 10_000;
const BLOCKS: u16 = 450;

struct Held {
    locks: Vec<UnixDatagram>,
    left: Vec<u16>,
}

static HELD: Mutex<Held> = Mutex::new(Held { locks: Vec::new(), left: Vec::new() });

/// Ports of 127.0.0.1 on which nobody listens and nobody will but who gets them here; all different.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut held = HELD.lock().ok().context("another test failed while it looked for ports")?;
    while held.left.len() < count {
        let first = hold_block(&mut held)?;
        held.left.extend((first..first + BLOCK).rev());
    }
    let kept = held.left.len() - count;
    let mut found = held.left.split_off(kept);
    found.reverse();
    Ok(found)
}

/// The first of [`BLOCK`] ports in a row for one cluster.
pub fn base_port() -> Result<u16> {
    hold_block(&mut *HELD.lock().ok().context("another test failed while it looked for ports")?)
}

fn hold_block(held: &mut Held) -> Result<u16> {
    // Neighbours among the processes begin far from each other.
    let start = (std::process::id() % u32::from(BLOCKS)) as u16 * 7;
    for nth in 0..BLOCKS {
        let first = FIRST + (start + nth) % BLOCKS * BLOCK;
        let address = SocketAddr::from_abstract_name(format!("martlet-ports-{first}"))?;
        let Ok(lock) = UnixDatagram::bind_addr(&address) else { continue };
        // Programs of others, and servers that outlived their test, hold no block.
        if (first..first + BLOCK).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            held.locks.push(lock);
            return Ok(first);
        }
    }
    anyhow::bail!("no block of {BLOCK} ports is free from {FIRST} on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut all = free_ports(70).unwrap();
        let base = base_port().unwrap();
        all.extend(base..base + BLOCK);
        all.extend(free_ports(3).unwrap());
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|port| (FIRST..FIRST + BLOCKS * BLOCK).contains(port)));
    }

    #[test]
    fn a_block_with_a_listener_is_passed_over() {
        let mut held = Held { locks: Vec::new(), left: Vec::new() };
        let taken = hold_block(&mut held).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", taken + BLOCK - 1)).unwrap();
        held.locks.clear();
        assert_ne!(hold_block(&mut held).unwrap(), taken);
    }
}
