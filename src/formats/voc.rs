//! labelImg's Pascal VOC XML, read by tag name and never by position.
//!
//! Values stay text here: whether they make sense is for whoever knows the picture to say.

use anyhow::{Context, Result, anyhow, bail, ensure};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use unicode_normalization::UnicodeNormalization;

/// Deeper files are no labels; the limit keeps the tree's recursion off the end of the stack.
const MAX_DEPTH: usize = 64;

/// What to do about a file that is cut off.
const MEND: &str = "copy the file again or label the picture again";

/// One picture's labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotation {
    /// `<folder>`: the picture's folder on the labeller's machine.
    pub folder: Option<String>,
    /// `<filename>`.
    pub filename: Option<String>,
    /// `<path>`: the picture's path on the labeller's machine, Windows paths included.
    pub path: Option<String>,
    /// `<size>`'s `<width>`.
    pub width: Option<String>,
    /// `<size>`'s `<height>`.
    pub height: Option<String>,
    /// Each `<object>` of the picture, in the file's order.
    pub objects: Vec<Object>,
    /// Tags that look like labels and stand where none are read, beside or inside an `<object>`.
    pub misplaced: Vec<String>,
}

/// One labelled object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// `<name>`: its class.
    pub name: Option<String>,
    /// `<pose>`.
    pub pose: Option<String>,
    /// `<truncated>`: cut by the picture's edge.
    pub truncated: bool,
    /// `<difficult>`: evaluation neither counts nor punishes it.
    pub difficult: bool,
    /// Its own `<bndbox>`, not that of a `<part>`.
    pub corners: Option<Corners>,
    /// Tags that stand in it more than once, where one is meant; the first was read.
    pub doubled: Vec<&'static str>,
}

/// The four values of a `<bndbox>`, in pixels, with the white space that may stand around them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Corners {
    /// Left.
    pub xmin: Option<String>,
    /// Top.
    pub ymin: Option<String>,
    /// Right.
    pub xmax: Option<String>,
    /// Bottom.
    pub ymax: Option<String>,
}

/// Reads the bytes of one XML file.
///
/// # Errors
/// If they are not UTF-8, not well-formed, cut off, or something else than an `<annotation>`; the line is named.
pub fn parse(bytes: &[u8]) -> Result<Annotation> {
    let root = tree(text_of(bytes)?)?;
    ensure!(
        root.name == "annotation",
        "this is no labelImg file: its root is <{}> and should be <annotation>; move it out of the input folder",
        root.name
    );
    let misplaced: Vec<String> = root.children.iter().flat_map(Element::misplaced_labels).map(str::to_string).collect();
    if root.child("object").is_none()
        && let Some(element) = misplaced.first()
    {
        bail!(
            "there is a <{element}>, but no <object> directly inside <annotation>, where labelImg has the boxes (names of tags are \
             in small letters); label the picture again, or remove what is inside <annotation> if nothing is on the picture"
        );
    }
    let size = root.child("size");
    let of_size = |name| size.and_then(|size| size.text(name));
    Ok(Annotation {
        folder: root.text("folder"),
        filename: root.text("filename"),
        path: root.text("path"),
        width: of_size("width"),
        height: of_size("height"),
        objects: root.children.iter().filter(|child| child.name == "object").map(object).collect(),
        misplaced,
    })
}

fn object(element: &Element) -> Object {
    Object {
        // In one Unicode form, so that a class typed on macOS is the class typed elsewhere.
        name: element.text("name").map(|name| name.nfc().collect()),
        pose: element.text("pose"),
        truncated: element.flag("truncated"),
        difficult: element.flag("difficult"),
        doubled: element.doubled(),
        corners: element.child("bndbox").map(|bndbox| Corners {
            xmin: bndbox.raw("xmin"),
            ymin: bndbox.raw("ymin"),
            xmax: bndbox.raw("xmax"),
            ymax: bndbox.raw("ymax"),
        }),
    }
}

/// An element with what is directly in it.
#[derive(Debug, Default)]
struct Element {
    /// Without its namespace's prefix.
    name: String,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Those of an object's tags that stand in it, or in its box, more than once.
    fn doubled(&self) -> Vec<&'static str> {
        let count = |element: &Element, name: &str| element.children.iter().filter(|child| child.name == name).count();
        let own = ["name", "bndbox"].into_iter().filter(|name| count(self, name) > 1);
        let corners = ["xmin", "ymin", "xmax", "ymax"];
        let bndbox = self.child("bndbox");
        own.chain(corners.into_iter().filter(|name| bndbox.is_some_and(|bndbox| count(bndbox, name) > 1))).collect()
    }

    /// The text of a child, without the white space around it; `None` if there is no such child or it is empty.
    fn text(&self, name: &str) -> Option<String> {
        let text = self.child(name)?.text.trim();
        (!text.is_empty()).then(|| text.to_string())
    }

    /// The text of a child as it stands; `None` if there is no such child or nothing but white space in it.
    fn raw(&self, name: &str) -> Option<String> {
        self.child(name).map(|child| child.text.clone()).filter(|text| !text.trim().is_empty())
    }

    /// The names of the outermost elements in it, itself included, that look like labels.
    fn misplaced(&self) -> Vec<&str> {
        if ["object", "bndbox"].iter().any(|name| self.name.eq_ignore_ascii_case(name)) {
            return vec![&self.name];
        }
        self.children.iter().flat_map(Element::misplaced).collect()
    }

    /// Of a child of `<annotation>`: what is in it that looks like labels and is not read. An `<object>` has one box, and its parts have theirs.
    fn misplaced_labels(&self) -> Vec<&str> {
        if self.name != "object" {
            return self.misplaced();
        }
        let inside = self.children.iter().filter(|child| !matches!(child.name.as_str(), "bndbox" | "part"));
        inside.flat_map(Element::misplaced).collect()
    }

    /// labelImg writes 0 or 1, other tools a word or nothing.
    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| {
            matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "y" | "t")
                || text.parse().is_ok_and(|number: f64| number != 0.0)
        })
    }
}

fn text_of(bytes: &[u8]) -> Result<&str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    ensure!(!bytes.iter().all(u8::is_ascii_whitespace), "the file is empty; label the picture again or remove the file");
    ensure!(
        !matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'<', 0, ..] | [0, b'<', ..]),
        "the XML is UTF-16, not UTF-8; save it as UTF-8"
    );
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let line = line_at(bytes, at);
        // The cut may have gone through a letter.
        if error.error_len().is_none() {
            return anyhow!("line {line}: the XML is cut off inside a letter; {MEND}");
        }
        let declared = match declared_encoding(bytes) {
            Some(encoding) => format!(" (it says it is {encoding})"),
            None => String::new(),
        };
        anyhow!("line {line}: the XML is not UTF-8{declared}: byte {:#04x}; save it as UTF-8", bytes[at])
    })
}

/// The encoding that `<?xml encoding="..."?>` names.
fn declared_encoding(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let value = head.split("encoding").nth(1)?.trim_start_matches([' ', '=']);
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    value[1..].split(quote).next().map(str::to_string)
}

fn line_at(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at.min(bytes.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// The root element of a whole document.
fn tree(text: &str) -> Result<Element> {
    let mut reader = Reader::from_str(text);
    // What is open, outermost first; the document itself stands below them all.
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(|error| {
            let line = line_at(text.as_bytes(), reader.error_position() as usize);
            let what = error.to_string();
            let entity = what.contains("eference") || what.contains("entity");
            if what.contains("before end of input") && !entity {
                return anyhow!("line {line}: the XML is cut off inside a tag; {MEND}");
            }
            let hint = if entity { " (a bare & is written &amp;)" } else { "" };
            anyhow!("line {line}: the XML is broken: {error}{hint}; repair it or label the picture again")
        })?;
        let line = || line_at(text.as_bytes(), reader.buffer_position() as usize);
        match event {
            Event::Start(tag) => {
                ensure!(open.len() < MAX_DEPTH, "line {}: elements are nested more than {MAX_DEPTH} deep", line());
                open.push(named(tag.local_name().as_ref()));
            }
            Event::Empty(tag) => adopt(&mut open, named(tag.local_name().as_ref()))?,
            Event::End(_) => {
                let element = open.pop().context("an element ends that never began")?;
                adopt(&mut open, element)?;
            }
            Event::Text(piece) => append(&mut open, &piece.xml10_content()),
            Event::CData(piece) => append(&mut open, &piece.xml10_content()),
            Event::GeneralRef(reference) => {
                let character = reference
                    .resolve_char_ref()
                    .with_context(|| format!("line {}: `&{};` is no character; correct it", line(), reference.as_ref()))?;
                match (character, resolve_predefined_entity(&reference)) {
                    (Some(character), _) => append(&mut open, character.encode_utf8(&mut [0; 4])),
                    (None, Some(text)) => append(&mut open, text),
                    (None, None) => bail!(
                        "line {}: `&{};` is no entity that XML knows; write the character itself (a bare & is &amp;)",
                        line(),
                        reference.as_ref()
                    ),
                }
            }
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::DocType(_) | Event::PI(_) => {}
        }
    }
    if open.len() > 1 {
        let unclosed = open.pop().map(|element| element.name).unwrap_or_default();
        let line = line_at(text.as_bytes(), text.trim_end().len());
        bail!("line {line}: the XML is cut off: it ends inside <{unclosed}>; {MEND}");
    }
    let mut roots = open.pop().map(|document| document.children).unwrap_or_default().into_iter();
    let root = roots.next().context("the file holds no XML element; label the picture again or remove the file")?;
    ensure!(roots.next().is_none(), "the file holds more than one XML document; keep one");
    Ok(root)
}

fn named(name: impl AsRef<str>) -> Element {
    Element { name: name.as_ref().to_string(), ..Element::default() }
}

fn adopt(open: &mut [Element], child: Element) -> Result<()> {
    open.last_mut().context("an element ends that never began")?.children.push(child);
    Ok(())
}

fn append(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", parse(bytes).unwrap_err())
    }

    #[test]
    fn tags_that_stand_twice_are_told_and_those_of_parts_are_not() {
        let corners = |x: u8| format!("<bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>");
        let object = |inside: &str| {
            let xml = format!("<annotation><object>{inside}</object></annotation>");
            parse(xml.as_bytes()).unwrap().objects.remove(0)
        };
        let part = format!("<part><name>head</name>{}</part>", corners(3));
        assert!(object(&format!("<name>a</name>{}{part}{part}", corners(1))).doubled.is_empty());
        let twice = object(&format!("<name>a</name>{}{}<name>b</name>", corners(1), corners(2)));
        assert_eq!(twice.doubled, ["name", "bndbox"]);
        assert_eq!((twice.name.as_deref(), twice.corners.unwrap().xmin.as_deref()), (Some("a"), Some("1")));
        assert_eq!(object("<name>a</name><bndbox><xmin>1</xmin><xmin>2</xmin></bndbox>").doubled, ["xmin"]);
    }

    #[test]
    fn labels_that_stand_where_none_are_read_are_told() {
        let object = "<object><name>a</name><bndbox><xmin>1</xmin></bndbox></object>";
        let part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>";
        for (beside, told) in [
            ("", vec![]),
            ("<Object><name>b</name></Object>", vec!["Object"]),
            ("<objects><object/><object/></objects>", vec!["object", "object"]),
            ("<layer><shape><bndbox/></shape></layer><segmented>0</segmented>", vec!["bndbox"]),
            ("<object><name>b</name><object/><bndbox/></object>", vec!["object"]),
            (&format!("<object><name>b</name><bndbox/>{part}{part}</object>"), vec![]),
        ] {
            let xml = format!("<annotation>{object}{beside}</annotation>");
            assert_eq!(parse(xml.as_bytes()).unwrap().misplaced, told, "{xml}");
        }
    }

    #[test]
    fn reads_fields_in_any_order_and_skips_what_it_does_not_know() {
        let xml = r#"<?xml version="1.0"?>
<!DOCTYPE annotation>
<annotation verified="yes"><!-- a comment -->
  <object>
    <part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>
    <bndbox><ymax> 40 </ymax><xmax>30</xmax><ymin>20</ymin><xmin>10</xmin></bndbox>
    <difficult>1</difficult>
    <name>Tie &amp; Fighter &#44032;<![CDATA[<x>]]></name>
  </object>
  <size><depth>3</depth><height>563</height><width>1000</width></size>
  <filename>a b#1.jpg</filename>
  <object><name/><truncated>true</truncated></object>
  <path>C:\images\a b#1.jpg</path>
</annotation>"#;
        let annotation = parse(xml.as_bytes()).unwrap();
        assert_eq!(annotation.filename.as_deref(), Some("a b#1.jpg"));
        assert_eq!(annotation.path.as_deref(), Some(r"C:\images\a b#1.jpg"));
        assert_eq!((annotation.width.as_deref(), annotation.height.as_deref()), (Some("1000"), Some("563")));
        assert_eq!(annotation.folder, None);
        let [first, second] = annotation.objects.as_slice() else { panic!("{:?}", annotation.objects) };
        assert_eq!(first.name.as_deref(), Some("Tie & Fighter 가<x>"));
        assert_eq!((first.difficult, first.truncated), (true, false));
        let corners = first.corners.clone().unwrap();
        let values = [corners.xmin, corners.ymin, corners.xmax, corners.ymax].map(Option::unwrap);
        assert_eq!(values, ["10", "20", "30", " 40 "]);
        assert_eq!((second.name.as_deref(), second.truncated, second.corners.is_none()), (None, true, true));
    }

    #[test]
    fn namespaces_and_a_byte_order_mark_do_not_matter() {
        let xml = "\u{feff}<v:annotation xmlns:v=\"urn:voc\"><v:filename>너구리.jpg</v:filename></v:annotation>";
        assert_eq!(parse(xml.as_bytes()).unwrap().filename.as_deref(), Some("너구리.jpg"));
    }

    #[test]
    fn a_part_without_an_own_box_leaves_the_object_without_one() {
        let xml = "<annotation><object><part><bndbox><xmin>1</xmin></bndbox></part></object></annotation>";
        assert_eq!(parse(xml.as_bytes()).unwrap().objects[0].corners, None);
    }

    #[test]
    fn boxes_that_are_not_where_labelimg_has_them_are_an_error_and_no_empty_picture() {
        for objects in ["<Object><name>a</name></Object>", "<objects><object/></objects>", "<BNDBOX/>"] {
            let said = error(format!("<annotation><filename>a.jpg</filename>{objects}</annotation>").as_bytes());
            assert!(said.contains("no <object> directly"), "{said}");
        }
        assert!(parse(b"<annotation><filename>a.jpg</filename></annotation>").unwrap().objects.is_empty());
    }

    #[test]
    fn class_names_come_in_one_unicode_form() {
        let xml = "<annotation><object><name>\u{1102}\u{1165}</name></object></annotation>";
        assert_eq!(parse(xml.as_bytes()).unwrap().objects[0].name.as_deref(), Some("\u{b108}"));
    }

    #[test]
    fn other_encodings_are_named() {
        let utf16: Vec<u8> = "\u{feff}<annotation/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(error(&utf16).contains("UTF-16"));
        assert!(error(&utf16[2..]).contains("UTF-16"));
        // EUC-KR for "가".
        let korean = b"<?xml version=\"1.0\" encoding=\"EUC-KR\"?>\n<annotation>\n<filename>\xb0\xa1.jpg</filename></annotation>";
        let said = error(korean);
        assert!(said.contains("line 3") && said.contains("not UTF-8") && said.contains("EUC-KR"), "{said}");
    }

    #[test]
    fn a_declared_encoding_does_not_matter_where_the_bytes_are_utf8() {
        let xml = "<?xml version=\"1.0\" encoding=\"euc-kr\"?><annotation><filename>a.jpg</filename></annotation>";
        assert_eq!(parse(xml.as_bytes()).unwrap().filename.as_deref(), Some("a.jpg"));
    }

    #[test]
    fn every_truncation_is_an_error_that_never_panics() {
        let xml = "<annotation>\n<filename>너구리.jpg</filename>\n<object><name>a</name></object>\n</annotation>";
        for end in 0..xml.len() {
            let said = error(&xml.as_bytes()[..end]);
            assert!(!said.is_empty());
        }
        assert!(error(&xml.as_bytes()[..xml.len() - 14]).contains("ends inside <annotation>"));
        let said = error(xml.split("</name>").next().unwrap().as_bytes());
        assert!(said.contains("line 3") && said.contains("cut off") && said.contains("<name>"), "{said}");
    }

    #[test]
    fn broken_files_say_what_is_wrong() {
        for (xml, wanted) in [
            ("", "empty"),
            (" \n ", "empty"),
            ("\0\0\0\0", "no XML element"),
            ("hello", "no XML element"),
            ("<annotation>\n<a></b></annotation>", "line 2"),
            ("<annotation><filename>a & b.jpg</filename></annotation>", "&amp;"),
            ("<annotation><filename>&nbsp;</filename></annotation>", "&nbsp;"),
            ("<annotation><filename>&#xfffffff;</filename></annotation>", "line 1"),
            ("<svg></svg>", "<svg>"),
            ("<annotation></annotation><annotation></annotation>", "more than one"),
            ("</annotation>", "broken"),
        ] {
            assert!(error(xml.as_bytes()).contains(wanted), "{xml}: {}", error(xml.as_bytes()));
        }
        let deep = "<a>".repeat(200_000);
        assert!(error(deep.as_bytes()).contains("nested"));
    }
}
