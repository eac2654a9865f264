//! What MD5 costs: GB/s of one core, of one body at once and of bodies that arrive together in pieces of 64 KiB.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use common::digest::{Md5Stream, md5};

const PIECE: usize = 64 * 1024;
const BODY: usize = 8 * 1024 * 1024;

fn main() {
    for size in [64, 4096, 1024 * 1024] {
        let data = vec![7; size];
        let rate = best(size * (1 + BODY / size), || {
            (0..=BODY / size).for_each(|_| {
                black_box(md5(black_box(&data)));
            });
        });
        println!("{rate:6.2} GB/s  {size} bytes");
    }
    for count in [1, 2, 3, 4, 8, 16, 32, 64] {
        let pieces: Vec<Bytes> = (0..count).map(|i| vec![i as u8; PIECE].into()).collect();
        let rate = best(count * BODY, || {
            let mut streams: Vec<_> = (0..count).map(|_| Md5Stream::new()).collect();
            for _ in 0..BODY / PIECE {
                for (stream, piece) in streams.iter_mut().zip(&pieces) {
                    stream.update(piece.clone());
                }
            }
            for stream in streams {
                black_box(stream.hexdigest());
            }
        });
        println!("{rate:6.2} GB/s  {count} streams");
    }
}

fn best(bytes: usize, work: impl Fn()) -> f64 {
    let seconds = (0..7).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    });
    bytes as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}
