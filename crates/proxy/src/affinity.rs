//! Which nodes are near: the `read_affinity` and `write_affinity` options.
//!
//! `read_affinity = r1z1=100, r1=200` orders nodes by priority, the lowest first; `write_affinity = r1, r2z2`
//! says which are local.

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("a list of {0}")]
pub struct AffinityError(&'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    region: u32,
    zone: Option<u32>,
}

impl Place {
    /// `r1` or `r1z2`
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('r')?;
        let (region, zone) = match text.split_once('z') {
            Some((region, zone)) => (region, Some(digits(zone)?)),
            None => (text, None),
        };
        Some(Self { region: digits(region)?, zone })
    }

    fn holds(&self, node: &ring::Device) -> bool {
        self.region == node.region && self.zone.is_none_or(|zone| zone == node.zone)
    }
}

fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The order of nodes for reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadAffinity {
    places: Vec<(u64, Place)>,
}

impl ReadAffinity {
    pub fn parse(text: &str) -> Result<Self, AffinityError> {
        let error = AffinityError("rREGION=PRIORITY or rREGIONzZONE=PRIORITY");
        let mut places = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        for piece in text.split(',') {
            let parsed = piece
                .trim()
                .split_once('=')
                .and_then(|(place, priority)| Some((u64::from(digits(priority)?), Place::parse(place)?)));
            let Some(parsed) = parsed else { return Err(error) };
            places.push(parsed);
        }
        places.sort_by_key(|(priority, _)| *priority);
        Ok(Self { places })
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn key(&self, node: &ring::Device) -> u64 {
        const FAR: u64 = 1 << 32;
        if self.places.is_empty() {
            return 0;
        }
        self.places.iter().find(|(_, place)| place.holds(node)).map_or(FAR, |(priority, _)| *priority)
    }
}

/// Which nodes are local for writing; empty when the option is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteAffinity {
    places: Vec<Place>,
}

impl WriteAffinity {
    pub fn parse(text: &str) -> Result<Self, AffinityError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let places = text.split(',').map(|piece| Place::parse(piece.trim())).collect::<Option<Vec<_>>>();
        Ok(Self { places: places.ok_or(AffinityError("rREGION or rREGIONzZONE"))? })
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub fn is_local(&self, node: &ring::Device) -> bool {
        self.places.iter().any(|place| place.holds(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_swift_reads_them() {
        let read = ReadAffinity::parse("r2=3, r1z2=1,r1=2").unwrap();
        assert_eq!(
            read.places,
            vec![
                (1, Place { region: 1, zone: Some(2) }),
                (2, Place { region: 1, zone: None }),
                (3, Place { region: 2, zone: None }),
            ]
        );
        assert!(ReadAffinity::parse("  ").unwrap().is_empty());
        for bad in ["r1", "r1z=1", "r1=", "z1=1", "r1=1,", "r+1=1", "rx=1"] {
            assert!(ReadAffinity::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(WriteAffinity::parse("r1, r2z2").unwrap().places.len(), 2);
        for bad in ["r1=1", "1", "r1z", "r1,,r2"] {
            assert!(WriteAffinity::parse(bad).is_err(), "{bad}");
        }
    }
}
