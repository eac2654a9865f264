//! Matrices over a finite field: what a code is, and what undoes it.

use crate::gf::Field;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    /// Row by row.
    elements: Vec<u16>,
}

impl Matrix {
    pub fn from_fn(rows: usize, columns: usize, element: impl Fn(usize, usize) -> u16) -> Self {
        let elements = (0..rows * columns).map(|i| element(i / columns, i % columns)).collect();
        Self { rows, columns, elements }
    }

    pub fn identity(size: usize) -> Self {
        Self::from_fn(size, size, |row, column| u16::from(row == column))
    }

    pub fn get(&self, row: usize, column: usize) -> u16 {
        self.elements[row * self.columns + column]
    }

    pub fn row(&self, row: usize) -> &[u16] {
        &self.elements[row * self.columns..(row + 1) * self.columns]
    }

    /// These rows, in this order.
    pub fn pick(&self, rows: &[usize]) -> Self {
        Self::from_fn(rows.len(), self.columns, |row, column| self.get(rows[row], column))
    }

    /// The rows of the other one below these.
    pub fn above(mut self, below: &Matrix) -> Self {
        debug_assert_eq!(self.columns, below.columns);
        self.elements.extend_from_slice(&below.elements);
        self.rows += below.rows;
        self
    }

    pub fn times(&self, field: Field, other: &Matrix) -> Self {
        Self::from_fn(self.rows, other.columns, |row, column| {
            (0..self.columns).fold(0, |sum, i| sum ^ field.mul(self.get(row, i), other.get(i, column)))
        })
    }

    /// The matrix that makes `targets` of these rows, `targets = combination * self`; `None` if one of them does not
    /// follow from these rows. Earlier rows are preferred, and a row that earlier ones imply is not used.
    pub fn express(&self, field: Field, targets: &Matrix) -> Option<Matrix> {
        debug_assert_eq!(self.columns, targets.columns);
        // Each kept row has one at its pivot, after it anything, and nothing at the pivots of the rows kept before it; beside
        // it stands how it came from our rows.
        let mut kept: Vec<(usize, Vec<u16>, Vec<u16>)> = Vec::new();
        let reduce = |kept: &[(usize, Vec<u16>, Vec<u16>)], values: &mut [u16], from: &mut [u16]| {
            for (pivot, row, origin) in kept {
                let factor = values[*pivot];
                if factor != 0 {
                    add_multiple(field, values, factor, row);
                    add_multiple(field, from, factor, origin);
                }
            }
        };
        for row in 0..self.rows {
            let (mut values, mut from) = (self.row(row).to_vec(), vec![0; self.rows]);
            from[row] = 1;
            reduce(&kept, &mut values, &mut from);
            if let Some(pivot) = values.iter().position(|v| *v != 0) {
                let factor = field.inv(values[pivot]);
                values.iter_mut().chain(&mut from).for_each(|v| *v = field.mul(*v, factor));
                kept.push((pivot, values, from));
            }
        }
        let mut elements = Vec::with_capacity(targets.rows * self.rows);
        for target in 0..targets.rows {
            let (mut values, mut from) = (targets.row(target).to_vec(), vec![0; self.rows]);
            reduce(&kept, &mut values, &mut from);
            if values.iter().any(|v| *v != 0) {
                return None;
            }
            elements.extend_from_slice(&from);
        }
        Some(Self { rows: targets.rows, columns: self.rows, elements })
    }

    /// The inverse of a square matrix, if it has one.
    pub fn inverse(&self, field: Field) -> Option<Matrix> {
        self.express(field, &Matrix::identity(self.columns))
    }
}

/// Adds a multiple of one row to another.
fn add_multiple(field: Field, to: &mut [u16], factor: u16, row: &[u16]) {
    to.iter_mut().zip(row).for_each(|(to, v)| *to ^= field.mul(factor, *v));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Matrix> {
        proptest::collection::vec(0u16..256, rows * columns).prop_map(move |elements| Matrix {
            rows,
            columns,
            elements,
        })
    }

    proptest! {
        #[test]
        fn an_inverse_undoes(m in matrix(4, 4)) {
            if let Some(inverse) = m.inverse(Field::Gf8) {
                prop_assert_eq!(inverse.times(Field::Gf8, &m), Matrix::identity(4));
                prop_assert_eq!(m.times(Field::Gf8, &inverse), Matrix::identity(4));
            }
        }

        #[test]
        fn what_is_a_combination_is_expressed(m in matrix(5, 4), combination in matrix(3, 5)) {
            let targets = combination.times(Field::Gf8, &m);
            let found = m.express(Field::Gf8, &targets);
            prop_assert_eq!(found.map(|f| f.times(Field::Gf8, &m)), Some(targets));
        }
    }

    #[test]
    fn singular_rows_express_only_what_they_span() {
        let m = Matrix::from_fn(2, 3, |row, column| [[1, 2, 3], [1, 2, 3]][row][column]);
        assert_eq!(m.express(Field::Gf8, &Matrix::identity(3)), None);
        let twice = Matrix::from_fn(1, 3, |_, column| [2, 4, 6][column]);
        let found = m.express(Field::Gf8, &twice).expect("twice the first row");
        assert_eq!(found.row(0), [2, 0], "the second row adds nothing");
    }
}
