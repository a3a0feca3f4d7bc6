//! What the checks have to say: which file, which object, what is wrong, what to do, what became of it.

use std::fmt;
use std::path::Path;

use crate::data::dataset::walk::path_as_text;
use crate::wording::printable;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is kept as it was meant; `--strict` lets it pass.
    Note,
    /// Something is wrong with the data; `--strict` stops for it.
    Problem,
}

/// What became of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is used.
    Kept,
    /// The object is left out, the rest of the picture used.
    ObjectSkipped,
    /// The picture and all its objects are left out.
    PictureSkipped,
    /// What lies there is not looked at.
    PassedOver,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file that has to be looked at.
    pub file: String,
    /// `object 2` of an XML file, `line 7` of a CSV file.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub text: String,
    /// How much it matters.
    pub level: Level,
    /// What became of the data.
    pub outcome: Outcome,
}

impl Finding {
    /// All is kept; worth knowing.
    pub fn note(file: &Path, text: impl Into<String>) -> Self {
        Self::new(file, text.into(), Level::Note, Outcome::Kept)
    }

    /// Something is wrong, and the data is used all the same.
    pub fn kept(file: &Path, text: impl Into<String>) -> Self {
        Self::new(file, text.into(), Level::Problem, Outcome::Kept)
    }

    /// A file or folder cannot be looked into.
    pub fn passed_over(file: &Path, text: impl Into<String>) -> Self {
        Self::new(file, text.into(), Level::Problem, Outcome::PassedOver)
    }

    /// The picture is left out.
    pub fn picture_skipped(file: &Path, text: impl Into<String>) -> Self {
        Self::new(file, text.into(), Level::Problem, Outcome::PictureSkipped)
    }

    /// One object is left out.
    pub fn object_skipped(file: &Path, object: &str, text: impl Into<String>) -> Self {
        Self::new(file, text.into(), Level::Problem, Outcome::ObjectSkipped).of(object)
    }

    /// The same finding, of one object of the file.
    pub fn of(mut self, object: &str) -> Self {
        self.object = Some(object.to_string());
        self
    }

    fn new(file: &Path, text: String, level: Level, outcome: Outcome) -> Self {
        Self { file: shown(file), object: None, text, level, outcome }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: ", self.file)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{}", self.text)?;
        match (self.level, self.outcome) {
            (Level::Note, _) => Ok(()),
            (Level::Problem, Outcome::Kept) => write!(f, " (kept)"),
            (Level::Problem, Outcome::ObjectSkipped) => write!(f, " (object skipped)"),
            (Level::Problem, Outcome::PictureSkipped) => write!(f, " (picture skipped)"),
            (Level::Problem, Outcome::PassedOver) => write!(f, " (passed over)"),
        }
    }
}

/// A path as messages show it: without a leading `./`, and without line breaks or terminal codes that a name may hold.
pub fn shown(path: &Path) -> String {
    let text = path_as_text(path);
    let text = text.strip_prefix("./").filter(|rest| !rest.is_empty()).unwrap_or(&text);
    printable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_one_line() {
        let finding = Finding::object_skipped(Path::new("./images/a.xml"), "object 2", "xmin 410 is not left of xmax 97");
        assert_eq!(finding.to_string(), "`images/a.xml`: object 2: xmin 410 is not left of xmax 97 (object skipped)");
        assert_eq!(Finding::note(Path::new("a.xml"), "fine").to_string(), "`a.xml`: fine");
    }
}
