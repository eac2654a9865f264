//! Tables of all multiples: any CPU can do this, and the other kernels must agree with it.

use crate::gf::Field;

/// The multiples of each element, column by column: of each byte, or of each low byte and then each high byte of a word.
pub enum Tables {
    Bytes(Vec<[u8; 256]>),
    Words(Vec<[[u16; 256]; 2]>),
}

impl Tables {
    pub fn new(field: Field, elements: impl Iterator<Item = u16>) -> Tables {
        let multiple = |element: u16, byte: usize, shift: u32| field.mul(element, (byte as u16) << shift);
        match field {
            Field::Gf16 => {
                let table = |e, shift| std::array::from_fn(|byte| multiple(e, byte, shift));
                Tables::Words(elements.map(|e| [table(e, 0), table(e, 8)]).collect())
            }
            Field::Gf4 | Field::Gf8 => {
                let table = |e| std::array::from_fn(|byte| multiple(e, byte, 0) as u8);
                Tables::Bytes(elements.map(table).collect())
            }
        }
    }

    pub fn apply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let rows = outputs.len();
        for (row, output) in outputs.iter_mut().enumerate() {
            output.fill(0);
            for (column, source) in sources.iter().enumerate() {
                match self {
                    Tables::Bytes(tables) => {
                        let table = &tables[column * rows + row];
                        output.iter_mut().zip(*source).for_each(|(o, s)| *o ^= table[usize::from(*s)]);
                    }
                    Tables::Words(tables) => {
                        let [low, high] = &tables[column * rows + row];
                        let words = output.as_chunks_mut().0.iter_mut().zip(source.as_chunks().0);
                        for (o, [l, h]) in words {
                            let sum = u16::from_le_bytes(*o) ^ low[usize::from(*l)] ^ high[usize::from(*h)];
                            *o = sum.to_le_bytes();
                        }
                    }
                }
            }
        }
    }
}
