//! `ec`: erasure codes against PyECLib, which calls ISA-L, on one core and segments of 1 MiB.
//!
//! Hot: one segment again and again, all in cache. Streaming: segments that are not, one after the other. Beside them the
//! speed of copying the same segments. Figures are GB of objects for a second of the thread's CPU time, the median of
//! rounds in which both sides take their turns. PyECLib is warm: malloc is told to keep what it has had. Else it gives
//! memory back after each segment, and in a fresh process PyECLib is many times slower.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ec::Codec;
use nix::sys::resource::{UsageWho, getrusage};
use probe::peer;
use std::hint::black_box;

const SEGMENT: usize = 1024 * 1024;
/// Segments that no cache holds together.
const RING: usize = 192;
const ROUNDS: usize = 3;
const TYPES: [&str; 2] = ["isa_l_rs_vand", "liberasurecode_rs_vand"];
const SCHEMES: [(usize, usize); 4] = [(4, 2), (8, 4), (10, 4), (15, 3)];
/// CPU seconds for a figure.
const WORK: f64 = 0.2;

pub fn table(alone: bool) -> Result<()> {
    let ring: Vec<Bytes> = (0..RING).map(segment).collect();
    println!(
        "\nerasure codes, GB/s of one core, segments of 1 MiB; decode: of what is left without the first 1 data"
    );
    println!(
        "fragment and without as many as there are parities; PyECLib in parentheses, and how many times as fast we are"
    );
    let mut copy = vec![0; SEGMENT];
    let hot_copy = median(|| speed(|_| black_box(&mut copy).copy_from_slice(black_box(&ring[0]))));
    let mut copies = vec![vec![0u8; SEGMENT]; RING];
    let cold_copy = median(|| speed(|i| black_box(&mut copies[i % RING]).copy_from_slice(&ring[i % RING])));
    drop(copies);
    println!("memcpy: hot {hot_copy:.1}, streaming {cold_copy:.1}");
    println!("| code | encode | decode 1 | decode m | encode, streaming | decode 1, streaming |");
    println!("|---|---|---|---|---|---|");
    for ec_type in TYPES {
        for (ndata, nparity) in SCHEMES {
            let codec = Codec::new(ec_type, ndata, nparity).context("a code")?;
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let ours = ours(&codec, &ring)?;
                let theirs = if alone { Vec::new() } else { pyeclibs(ec_type, ndata, nparity)? };
                rounds.push((ours, theirs));
            }
            let cells = (0..5).map(|i| {
                let ours = middle(rounds.iter().map(|(ours, _)| ours[i]).collect());
                let theirs: Vec<f64> =
                    rounds.iter().filter_map(|(_, theirs)| theirs.get(i).copied()).collect();
                if theirs.is_empty() {
                    return format!("{ours:.1}");
                }
                let theirs = middle(theirs);
                format!("{ours:.1} ({theirs:.2}): {:.1}", ours / theirs)
            });
            println!("| {ec_type} {ndata}+{nparity} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(())
}

fn segment(seed: usize) -> Bytes {
    (0..SEGMENT).map(|i| (i * 167 + (i >> 8) * 13 + seed) as u8).collect()
}

/// The five figures of a row.
fn ours(codec: &Codec, ring: &[Bytes]) -> Result<Vec<f64>> {
    let fragments =
        |segment: &Bytes| codec.encode(segment).iter().map(|f| f.to_bytes()).collect::<Vec<Bytes>>();
    let (ndata, nparity) = (codec.ndata(), codec.nparity());
    let all = fragments(&ring[0]);
    let (one_lost, most_lost) = (&all[1..=ndata], &all[nparity..]);
    for some in [one_lost, most_lost] {
        ensure!(codec.decode(some)?.concat() == ring[0], "decoded to something else");
    }
    let decode = |some: &[Bytes]| speed(|_| drop(black_box(codec.decode(black_box(some)))));
    let mut figures = vec![
        speed(|_| drop(black_box(codec.encode(black_box(&ring[0]))))),
        decode(one_lost),
        decode(most_lost),
        speed(|i| drop(black_box(codec.encode(&ring[i % RING])))),
    ];
    let cold: Vec<Vec<Bytes>> = ring.iter().map(|segment| fragments(segment)[1..=ndata].to_vec()).collect();
    figures.push(speed(|i| drop(black_box(codec.decode(&cold[i % RING])))));
    Ok(figures)
}

fn pyeclibs(ec_type: &str, ndata: usize, nparity: usize) -> Result<Vec<f64>> {
    let mut script = peer::script("codes_speed.py")?;
    script.env("MALLOC_MMAP_THRESHOLD_", "1073741824").env("MALLOC_TRIM_THRESHOLD_", "1073741824");
    script.args([ec_type, &ndata.to_string(), &nparity.to_string(), &WORK.to_string()]);
    let printed = peer::success(&mut script)?;
    printed.split_whitespace().map(|figure| figure.parse().context("a figure")).collect()
}

/// GB of segments for a CPU second of this thread. The work is told how often it has been done.
fn speed(mut work: impl FnMut(usize)) -> f64 {
    (0..16).for_each(&mut work);
    let (began, mut done) = (cpu(), 0);
    loop {
        (done..done + 16).for_each(&mut work);
        done += 16;
        let spent = cpu() - began;
        if spent > WORK {
            return (done * SEGMENT) as f64 / spent / 1e9;
        }
    }
}

fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread can always be asked for");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn median(mut figure: impl FnMut() -> f64) -> f64 {
    middle((0..ROUNDS).map(|_| figure()).collect())
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
