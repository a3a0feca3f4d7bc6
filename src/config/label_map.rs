//! Label maps: protobuf text that gives each class its id.
//!
//! Source: object_detection/utils/label_map_util.py (an id is from 1, 0 is the background's; names are what the
//! examples carry, display names what people are shown).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use unicode_normalization::UnicodeNormalization;

use crate::config::text;
use crate::proto::object_detection::protos as pb;
use crate::wording::plural;

const ROOT: &str = "object_detection.protos.StringIntLabelMap";

/// What a label map is called, in a project and beside a checkpoint.
pub const FILE_NAME: &str = "label_map.pbtxt";

/// Classes and their ids, in the order of the ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelMap {
    /// Sorted by id; ids and names occur once each.
    pub items: Vec<Item>,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// From 1.
    pub id: u32,
    /// What the labels call it.
    pub name: String,
    /// What people are shown, if not the name.
    pub display_name: Option<String>,
}

impl LabelMap {
    /// Reads a label map file.
    ///
    /// # Errors
    /// If the file cannot be read, and those of [`Self::parse`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(&text::read(path)?, &path.display().to_string())
    }

    /// Parses the text of a label map; `source` is what errors call it.
    ///
    /// # Errors
    /// If it is not a label map (`FILE:LINE:COLUMN`), is empty, or an item has no name, has no id from 1 up, or has the
    /// name or id of another.
    pub fn parse(text: &str, source: &str) -> Result<Self> {
        text::refuse_empty(text, source)?;
        let map: pb::StringIntLabelMap = text::parse(ROOT, text, source)?;
        let mut items: Vec<Item> = Vec::with_capacity(map.item.len());
        for (i, item) in map.item.iter().enumerate() {
            let item = check(item).with_context(|| format!("{source}: item {}", i + 1))?;
            for other in &items {
                ensure!(
                    other.id != item.id,
                    "{source}: id {} is given to both `{}` and `{}`; give each class an id of its own",
                    item.id,
                    other.name,
                    item.name
                );
                ensure!(
                    other.name != item.name,
                    "{source}: `{}` is there twice, with id {} and id {}; remove one",
                    item.name,
                    other.id,
                    item.id
                );
            }
            items.push(item);
        }
        items.sort_by_key(|item| item.id);
        Ok(Self { items })
    }

    /// Gives names their ids from 1, in the order they come; a name that comes again is passed over.
    pub fn from_names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut map = Self::default();
        for name in names {
            let name = name.into();
            if map.items.iter().all(|item| item.name != name) {
                map.items.push(Item { id: map.max_id() + 1, name, display_name: None });
            }
        }
        map
    }

    /// The label map as text, which [`Self::parse`] and TensorFlow read back.
    ///
    /// # Errors
    /// Only by a bug of ours.
    pub fn to_text(&self) -> Result<String> {
        let mut out = String::new();
        for (i, item) in self.items.iter().enumerate() {
            let item = pb::StringIntLabelMapItem {
                id: Some(i32::try_from(item.id)?),
                name: Some(item.name.clone()),
                display_name: item.display_name.clone(),
                ..Default::default()
            };
            let fields = text::to_text(&text::reflect("object_detection.protos.StringIntLabelMapItem", &item)?);
            let gap = if i == 0 { "" } else { "\n" };
            let _ = writeln!(out, "{gap}item {{");
            for field in fields.lines() {
                let _ = writeln!(out, "  {field}");
            }
            out.push_str("}\n");
        }
        Ok(out)
    }

    /// The largest id: how many classes a model must have to predict every one.
    pub fn max_id(&self) -> u32 {
        self.items.iter().map(|item| item.id).max().unwrap_or(0)
    }

    /// Makes sure that a model of so many classes knows every one of the map's.
    ///
    /// # Errors
    /// If it does not: the map would be another model's.
    pub fn ensure_within(&self, num_classes: usize) -> Result<()> {
        ensure!(
            self.max_id() as usize <= num_classes,
            "the label map's largest id is {}, but the model has {}: it was trained with another label map; name that with --label_file",
            self.max_id(),
            plural(num_classes, "class")
        );
        Ok(())
    }

    /// The id of the class with this name, or else with this display name if only one has it, or else with this name if white
    /// space around it and Unicode's form are let pass.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        if let Some(item) = self.items.iter().find(|item| item.name == name) {
            return Some(item.id);
        }
        let only = |fits: &dyn Fn(&Item) -> bool| {
            let mut fitting = self.items.iter().filter(|item| fits(item));
            let id = fitting.next()?.id;
            fitting.next().is_none().then_some(id)
        };
        only(&|item| item.display_name.as_deref() == Some(name))
            .or_else(|| only(&|item| item.name.trim().nfc().eq(name.trim().nfc())))
    }

    /// The name of a class.
    pub fn name_of(&self, id: u32) -> Option<&str> {
        self.item(id).map(|item| item.name.as_str())
    }

    /// What people are shown for a class: its display name, its name, or `id N` for one that the map lacks.
    pub fn label(&self, id: u32) -> String {
        match self.item(id) {
            Some(item) => item.display_name.as_ref().unwrap_or(&item.name).clone(),
            None => format!("id {id}"),
        }
    }

    /// The name or display name that is nearest to one that the map lacks; `None` only of an empty map.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        // Letters' case, spaces and marks are what most often differs.
        let folded = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
        let wanted = folded(name);
        let nearness = |other: &str| {
            let other = folded(other);
            strsim::normalized_damerau_levenshtein(&wanted, &other).max(strsim::jaro_winkler(&wanted, &other) - 0.1)
        };
        let known = self.items.iter().flat_map(|item| std::iter::once(&item.name).chain(&item.display_name));
        // Of equals the first, so that the answer does not depend on the search.
        known
            .map(|other| (nearness(other), other.as_str()))
            .fold(None, |best: Option<(f64, &str)>, next| match best {
                Some(best) if best.0 >= next.0 => Some(best),
                _ => Some(next),
            })
            .map(|(_, name)| name)
    }

    /// What is allowed and yet worth saying: ids that no class has.
    pub fn notes(&self) -> Vec<String> {
        let taken: HashSet<u32> = self.items.iter().map(|item| item.id).collect();
        let shown: Vec<String> = (1..=self.max_id()).filter(|id| !taken.contains(id)).take(5).map(|id| id.to_string()).collect();
        if shown.is_empty() {
            return Vec::new();
        }
        let rest = match self.max_id() as usize - taken.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        vec![format!(
            "no class has id {}{rest}: the model still reserves outputs up to the largest id, {}",
            shown.join(", "),
            self.max_id()
        )]
    }

    fn item(&self, id: u32) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }
}

fn check(item: &pb::StringIntLabelMapItem) -> Result<Item> {
    let display_name = item.display_name.clone().filter(|name| !name.is_empty());
    let Some(name) = item.name.clone().filter(|name| !name.trim().is_empty()) else {
        match item.id {
            Some(id) => bail!("id {id} has no name; add `name: \"...\"`, as the labels call it"),
            None => bail!("it has neither a name nor an id; write `item {{ id: 1 name: \"...\" }}`"),
        }
    };
    let id = match item.id {
        Some(id) if id > 0 => u32::try_from(id)?,
        Some(0) => bail!("`{name}` has id 0, which is the background's; ids start at 1"),
        Some(id) => bail!("`{name}` has id {id}; ids start at 1"),
        None => bail!("`{name}` has no id; add `id: 1` (ids start at 1)"),
    };
    Ok(Item { id, name, display_name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", LabelMap::parse(text, "map.pbtxt").unwrap_err())
    }

    #[test]
    fn reads_both_quotes_any_order_comments_and_display_names() {
        let text =
            "# mine\nitem { name: 'r2 d2' id: 2 }\nitem: <\n  display_name: \"Ra\\\"ccoon\"; id: 1,\n  name: \"너구리\"\n>";
        let map = LabelMap::parse(text, "map.pbtxt").unwrap();
        assert_eq!(
            map.items,
            [
                Item { id: 1, name: "너구리".into(), display_name: Some("Ra\"ccoon".into()) },
                Item { id: 2, name: "r2 d2".into(), display_name: None },
            ]
        );
        assert_eq!((map.id_of("너구리"), map.id_of("Ra\"ccoon"), map.id_of("x")), (Some(1), Some(1), None));
        assert_eq!((map.label(1), map.label(2), map.label(3)), ("Ra\"ccoon".into(), "r2 d2".into(), "id 3".into()));
        assert_eq!(map.name_of(2), Some("r2 d2"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let map = LabelMap::from_names(["cat", "it's \"a\" \\ dog", "너구리", "cat"]);
        let text = map.to_text().unwrap();
        assert_eq!(LabelMap::parse(&text, "map.pbtxt").unwrap(), map);
        assert!(text.starts_with("item {\n  name: \"cat\"\n  id: 1\n}\n\nitem {\n"), "{text}");
        assert_eq!(map.max_id(), 3);
    }

    #[test]
    fn syntax_errors_name_line_and_column() {
        assert!(error("item {\n  id: 1\n  nmae: 'a'\n}").starts_with("map.pbtxt:3:3:"), "{}", error("item {\n  nmae: 'a'\n}"));
        assert!(error("item {\n  id: x\n}").contains("map.pbtxt:2:7:"));
        assert!(error("item {\n  id: 1\n").contains("map.pbtxt:2"));
        assert!(error("\n# nothing\n").contains("empty"));
    }

    #[test]
    fn faulty_items_are_named() {
        for (text, wanted) in [
            ("item { id: 0 name: 'a' }", "`a` has id 0"),
            ("item { id: -3 name: 'a' }", "`a` has id -3"),
            ("item { name: 'a' }", "`a` has no id"),
            ("item { id: 4 }", "id 4 has no name"),
            ("item { }", "item 1"),
            ("item { id: 1 name: 'a' } item { id: 1 name: 'b' }", "`a` and `b`"),
            ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "`a` is there twice"),
        ] {
            assert!(error(text).contains(wanted), "{text}: {}", error(text));
        }
    }

    #[test]
    fn gaps_are_allowed_and_noted() {
        let map = LabelMap::parse("item { id: 1 name: 'a' } item { id: 90 name: 'b' }", "x").unwrap();
        assert_eq!(map.max_id(), 90);
        assert!(map.notes()[0].contains("id 2, 3, 4, 5, 6 and 83 more"), "{:?}", map.notes());
        assert!(LabelMap::from_names(["a", "b"]).notes().is_empty());
    }

    #[test]
    fn an_ambiguous_display_name_names_no_class() {
        let map = LabelMap::parse("item { id: 1 name: 'a' display_name: 'x' } item { id: 2 name: 'b' display_name: 'x' }", "x")
            .unwrap();
        assert_eq!(map.id_of("x"), None);
    }

    #[test]
    fn the_nearest_name_ignores_case_and_separators() {
        let map = LabelMap::from_names(["R2-D2", "raccoon"]);
        assert_eq!(map.nearest("r2 d2"), Some("R2-D2"));
        assert_eq!(map.nearest("racoon"), Some("raccoon"));
        assert_eq!(LabelMap::from_names(["dog", "cat", "너구리"]).nearest("cta"), Some("cat"));
        assert_eq!(LabelMap::from_names(["dog", "cat", "너구리"]).nearest("너구"), Some("너구리"));
        assert_eq!(LabelMap::default().nearest("zebra"), None);
    }
}
