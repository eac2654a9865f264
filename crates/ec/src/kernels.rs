//! A matrix times payloads: each output is a sum of multiples of the sources, over a finite field.
//!
//! All of an encode's or decode's time is here. A product is prepared once, in the form that its kernel wants: which of
//! the kernels that is, is chosen by what the CPU has. All make the same bytes.

use crate::gf::Field;
use crate::matrix::Matrix;

mod portable;

/// A way of multiplying.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    Portable,
}

impl Kernel {
    /// The slowest first.
    pub const ALL: &[Kernel] = &[Kernel::Portable];

    pub fn best() -> Kernel {
        *Self::ALL.iter().rfind(|kernel| kernel.is_available()).unwrap_or(&Kernel::Portable)
    }

    pub fn is_available(self) -> bool {
        match self {
            Kernel::Portable => true,
        }
    }
}

/// A matrix, ready to be multiplied with.
pub struct Product {
    rows: usize,
    columns: usize,
    tables: Tables,
}

/// The elements of the matrix, column by column.
enum Tables {
    Portable(portable::Tables),
}

impl Product {
    /// The field is that of bytes or that of words of two.
    pub fn new(kernel: Kernel, field: Field, matrix: &Matrix) -> Product {
        let elements: Vec<u16> = (0..matrix.columns)
            .flat_map(|column| (0..matrix.rows).map(move |row| matrix.get(row, column)))
            .collect();
        let tables = match kernel {
            Kernel::Portable => Tables::Portable(portable::Tables::new(field, &elements)),
        };
        Product { rows: matrix.rows, columns: matrix.columns, tables }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A source for each column, an output for each row, all of one length; whatever outputs held is overwritten.
    pub fn apply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((outputs.len(), sources.len()), (self.rows, self.columns));
        let Some(len) = outputs.first().map(|output| output.len()) else { return };
        assert!(sources.iter().all(|s| s.len() == len) && outputs.iter().all(|o| o.len() == len));
        match &self.tables {
            Tables::Portable(tables) => tables.apply(sources, outputs),
        }
    }
}
