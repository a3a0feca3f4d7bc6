//! A folder of labelled pictures: found, paired, checked, split and written as records.

pub mod ahead;
pub mod check;
pub mod division;
pub mod finding;
pub mod labels;
pub mod number;
pub mod pairing;
pub mod picture;
pub mod summary;
pub mod table;
pub mod walk;
pub mod whole;
pub mod write;
