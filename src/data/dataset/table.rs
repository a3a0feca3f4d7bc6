//! The CSV files of boxes: written as the old tool wrote them, and read back as a user edited them.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use csv::{ByteRecord, ReaderBuilder, StringRecord, Writer};

use crate::data::dataset::check::Picture;
use crate::data::dataset::finding::{printable, shown};
use crate::formats::voc;

/// The columns, in the old tool's order.
pub const COLUMNS: [&str; 8] = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"];

/// One picture's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The first column.
    pub filename: String,
    /// Width and height of its first row.
    pub size: [Option<String>; 2],
    /// `line 7` and the box in it. A picture with one row that has no class and no box has none: it is a negative.
    pub objects: Vec<(String, voc::Object)>,
    /// Its first line.
    pub line: u64,
}

/// Writes one row a box, rounded to whole pixels.
///
/// # Errors
/// Those of `out`.
pub fn write<'a>(out: impl Write, pictures: impl IntoIterator<Item = &'a Picture>) -> Result<()> {
    let mut writer = Writer::from_writer(out);
    writer.write_record(COLUMNS)?;
    for picture in pictures {
        let size = [picture.looked.width.to_string(), picture.looked.height.to_string()];
        for object in &picture.objects {
            let [ymin, xmin, ymax, xmax] = object.box_px;
            let (xmin, xmax) = rounded(xmin, xmax);
            let (ymin, ymax) = rounded(ymin, ymax);
            let corners = [xmin, ymin, xmax, ymax].map(|value| value.to_string());
            let mut row = vec![picture.name.as_str(), &size[0], &size[1], &object.class];
            row.extend(corners.iter().map(String::as_str));
            writer.write_record(row)?;
        }
    }
    writer.flush()?;
    Ok(())
}

/// A side in whole pixels; one of less than a pixel keeps a pixel rather than vanish.
fn rounded(low: f64, high: f64) -> (i64, i64) {
    let (a, b) = (low.round() as i64, high.round() as i64);
    if a < b { (a, b) } else { (low.floor() as i64, high.ceil() as i64) }
}

/// Reads a CSV file; its columns may stand in any order, others are passed over.
///
/// # Errors
/// If it cannot be read, is not UTF-8, lacks a column, or a row is short or long; the line is named.
pub fn read(path: &Path) -> Result<Vec<Rows>> {
    let name = shown(path);
    let bytes =
        std::fs::read(path).with_context(|| format!("`{name}`: cannot be read; --custom_csv takes the boxes from this file"))?;
    parse(&bytes, &name)
}

fn parse(bytes: &[u8], name: &str) -> Result<Vec<Rows>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        bail!("`{name}`: the file is UTF-16, not UTF-8; save it as \"CSV UTF-8\"");
    }
    let mut reader = ReaderBuilder::new().flexible(true).has_headers(false).from_reader(bytes);
    let mut raw = ByteRecord::new();
    let mut columns: Option<[usize; 8]> = None;
    let mut width = 0;
    let mut rows: Vec<Rows> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut lines = Lines { bytes, at: 0, line: 1 };
    loop {
        let more = reader.read_byte_record(&mut raw).with_context(|| format!("`{name}`: cannot be read as CSV"))?;
        if !more {
            break;
        }
        let line = raw.position().map_or(0, |position| lines.of(position.byte()));
        let row = StringRecord::from_byte_record(raw.clone()).map_err(|_| {
            anyhow::anyhow!("`{name}`: line {line}: not UTF-8; save it as \"CSV UTF-8\" (Excel offers it under that name)")
        })?;
        if row.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let Some(columns) = &columns else {
            columns = Some(header(&row, name)?);
            width = row.len();
            continue;
        };
        if row.len() != width {
            bail!(
                "`{name}`: line {line}: it has {} fields and the first line has {width}; a name with a comma needs quotes",
                row.len()
            );
        }
        let field = |i: usize| row.get(columns[i]).unwrap_or_default();
        let raw_field = |i: usize| Some(field(i).to_string()).filter(|text| !text.trim().is_empty());
        let filename = field(0).trim();
        if filename.is_empty() {
            bail!("`{name}`: line {line}: the filename is empty");
        }
        let index = *by_name.entry(filename.to_string()).or_insert_with(|| {
            let size = [raw_field(1), raw_field(2)].map(|text| text.map(|text| text.trim().to_string()));
            rows.push(Rows { filename: filename.to_string(), size, objects: Vec::new(), line });
            rows.len() - 1
        });
        // A row with nothing behind the size says that nothing is on the picture.
        if (3..8).all(|i| raw_field(i).is_none()) {
            continue;
        }
        let corners = voc::Corners { xmin: raw_field(4), ymin: raw_field(5), xmax: raw_field(6), ymax: raw_field(7) };
        let object = voc::Object {
            name: raw_field(3).map(|text| text.trim().to_string()),
            corners: Some(corners),
            ..voc::Object::default()
        };
        rows[index].objects.push((format!("line {line}"), object));
    }
    if columns.is_none() {
        bail!("`{name}`: the file is empty; its first line must be {}", COLUMNS.join(","));
    }
    Ok(rows)
}

/// Counts lines; the reader's own count slips at blank lines and Windows line ends.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of the row that begins at byte `start` or behind the line ends there. Rows are asked for in order.
    fn of(&mut self, start: u64) -> u64 {
        let blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let mut start = (start as usize).min(self.bytes.len());
        start += self.bytes[start..].iter().take_while(blank).count();
        self.line += self.bytes[self.at..start].iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.at = start;
        self.line
    }
}

/// Where each of our columns stands.
fn header(row: &StringRecord, name: &str) -> Result<[usize; 8]> {
    let mut columns = [0; 8];
    for (column, wanted) in columns.iter_mut().zip(COLUMNS) {
        let found = row.iter().position(|field| field.trim().eq_ignore_ascii_case(wanted));
        let Some(at) = found else {
            let hint = match row.iter().next() {
                Some(first) if row.len() == 1 && first.contains(';') => "; separate the columns with commas, not semicolons",
                Some(first) if row.len() == 1 && first.contains('\t') => "; separate the columns with commas, not tabs",
                _ => "",
            };
            let first: Vec<String> = row.iter().map(printable).collect();
            bail!(
                "`{name}`: there is no column `{wanted}`; the first line must be {} and is {}{hint}",
                COLUMNS.join(","),
                first.join(",")
            );
        };
        *column = at;
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::check::Object;
    use crate::data::dataset::picture::Looked;
    use crate::data::image::Format;

    fn picture(name: &str, boxes: &[(&str, [f64; 4])]) -> Picture {
        let objects = boxes.iter().map(|(class, box_px)| Object {
            label: "object 1".into(),
            class: class.to_string(),
            id: 1,
            box_px: *box_px,
            pose: String::new(),
            truncated: false,
            difficult: false,
        });
        let looked = Looked { format: Format::Jpeg, width: 640, height: 480, orientation: 1, bytes: 1, sha256: [0; 32] };
        Picture { labels: "a.xml".into(), path: name.into(), name: name.into(), looked, objects: objects.collect(), skipped: 0 }
    }

    #[test]
    fn writes_the_old_columns_quoted_where_needed_and_reads_them_back() {
        let pictures = [
            picture("a, b.jpg", &[("Tie Fighter", [10.4, 20.5, 30.0, 40.0]), ("\"x\"", [1.2, 1.2, 1.4, 9.0])]),
            picture("c.jpg", &[]),
        ];
        let mut bytes = Vec::new();
        write(&mut bytes, &pictures).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert_eq!(
            text,
            "filename,width,height,class,xmin,ymin,xmax,ymax\n\"a, b.jpg\",640,480,Tie Fighter,21,10,40,30\n\
             \"a, b.jpg\",640,480,\"\"\"x\"\"\",1,1,9,2\n"
        );
        let rows = parse(&bytes, "t.csv").unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].filename, "a, b.jpg");
        assert_eq!(rows[0].size, [Some("640".into()), Some("480".into())]);
        assert_eq!(rows[0].objects[1].0, "line 3");
        assert_eq!(rows[0].objects[1].1.name.as_deref(), Some("\"x\""));
    }

    #[test]
    fn reads_other_orders_more_columns_a_byte_order_mark_and_windows_line_ends() {
        let text = "\u{feff}note,ymax,xmax,ymin,xmin,class,height,width,filename\r\nx,4,3,2,1,너구리,480,640,a.jpg\r\n\r\n\
                    ,,,,,,480,640,b.jpg\r\n";
        let rows = parse(text.as_bytes(), "t.csv").unwrap();
        assert_eq!((rows[0].filename.as_str(), rows[1].filename.as_str()), ("a.jpg", "b.jpg"));
        let corners = rows[0].objects[0].1.corners.clone().unwrap();
        assert_eq!([corners.xmin, corners.ymin, corners.xmax, corners.ymax].map(Option::unwrap), ["1", "2", "3", "4"]);
        assert!(rows[1].objects.is_empty());
        assert_eq!(rows[1].line, 4);
    }

    #[test]
    fn faults_name_file_and_line() {
        let head = "filename,width,height,class,xmin,ymin,xmax,ymax\n";
        for (text, wanted) in [
            ("".as_bytes().to_vec(), "empty"),
            (b"filename;width\na;1\n".to_vec(), "semicolons"),
            (b"filename,width,height,klass,xmin,ymin,xmax,ymax\n".to_vec(), "`class`"),
            (format!("{head}a.jpg,1,1\n").into_bytes(), "line 2"),
            (format!("{head}a, b.jpg,1,1,c,1,1,2,2\n").into_bytes(), "quotes"),
            (format!("{head},1,1,c,1,1,2,2\n").into_bytes(), "filename is empty"),
            ([head.as_bytes(), b"\xb0\xa1.jpg,1,1,c,1,1,2,2\n"].concat(), "line 2: not UTF-8"),
        ] {
            let said = format!("{:#}", parse(&text, "t.csv").unwrap_err());
            assert!(said.contains("t.csv") && said.contains(wanted), "{said}");
        }
        assert!(parse(head.as_bytes(), "t.csv").unwrap().is_empty());
    }
}
