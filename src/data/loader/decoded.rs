//! Decoded pictures kept from one pass to the next, as far as a fixed amount of memory goes.
//!
//! Passes over the same few hundred pictures decode each hundreds of times, at the cost of a core that the step could have. What is
//! kept stays: with every picture read once a pass, turning one out for another would gain nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use crate::data::image::RgbImage;

/// Pictures by the number of their record.
#[derive(Debug)]
pub struct Decoded {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    pictures: HashMap<usize, Arc<RgbImage>>,
    /// Bytes left for more of them.
    room: usize,
}

impl Decoded {
    /// Keeps pictures of up to `room` bytes in all; none with 0.
    pub fn new(room: usize) -> Self {
        Self { kept: Mutex::new(Kept { pictures: HashMap::new(), room }) }
    }

    /// The picture of record `index`: a copy of the one that is kept, else what `decode` gives.
    ///
    /// # Errors
    /// Those of `decode`; nothing is kept then.
    pub fn picture(&self, index: usize, decode: impl FnOnce() -> Result<RgbImage>) -> Result<RgbImage> {
        let kept = self.lock().pictures.get(&index).map(Arc::clone);
        if let Some(picture) = kept {
            return Ok(RgbImage::clone(&picture));
        }
        let picture = decode()?;
        let bytes = picture.data.len();
        if bytes <= self.lock().room {
            // Copied outside of the lock; whether there still is room is asked again.
            let copy = Arc::new(picture.clone());
            let mut kept = self.lock();
            if bytes <= kept.room && kept.pictures.insert(index, copy).is_none() {
                kept.room -= bytes;
            }
        }
        Ok(picture)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that is done under the lock leaves it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    fn picture(level: u8) -> RgbImage {
        RgbImage { width: 2, height: 2, data: vec![level; 12] }
    }

    #[test]
    fn what_fits_is_decoded_once_and_the_rest_every_time() {
        let decoded = Decoded::new(30);
        let times = Cell::new(0);
        let get = |index: usize| {
            let decode = || {
                times.set(times.get() + 1);
                Ok(picture(index as u8))
            };
            decoded.picture(index, decode).unwrap()
        };
        for pass in 0..3 {
            for index in 0..4 {
                assert_eq!(get(index), picture(index as u8), "pass {pass}");
            }
        }
        // Two of 12 bytes fit into 30; two were decoded in each pass.
        assert_eq!(times.get(), 2 + 3 * 2);
    }

    #[test]
    fn a_picture_that_does_not_decode_is_tried_again() {
        let decoded = Decoded::new(30);
        assert!(decoded.picture(0, || bail!("torn")).is_err());
        assert_eq!(decoded.picture(0, || Ok(picture(7))).unwrap(), picture(7));
        assert_eq!(decoded.picture(0, || bail!("it is kept by now")).unwrap(), picture(7));
    }
}
