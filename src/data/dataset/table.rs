//! The CSV files of boxes: written as the old tool wrote them, and read back as a user edited them.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use csv::{ByteRecord, ReaderBuilder, StringRecord, Writer};
use unicode_normalization::UnicodeNormalization;

use crate::data::dataset::check::Picture;
use crate::data::dataset::finding::shown;
use crate::data::dataset::number;
use crate::formats::voc;
use crate::wording::{plural, printable};

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

/// What a CSV file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Picture by picture, in the file's order.
    pub pictures: Vec<Rows>,
    /// Lines that cannot be used, and what is wrong with them.
    pub faults: Vec<(u64, String)>,
    /// Lines that are used and whose size is another than the picture's first line gives, and both sizes in words.
    pub sizes: Vec<(u64, String)>,
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
/// If it cannot be read or lacks a column.
pub fn read(path: &Path) -> Result<Table> {
    let name = shown(path);
    let bytes =
        std::fs::read(path).with_context(|| format!("`{name}`: cannot be read; --custom_csv takes the boxes from this file"))?;
    parse(&bytes, &name)
}

fn parse(bytes: &[u8], name: &str) -> Result<Table> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        bail!("`{name}`: the file is UTF-16, not UTF-8; save it as \"CSV UTF-8\"");
    }
    let mut reader = ReaderBuilder::new().flexible(true).has_headers(false).from_reader(bytes);
    let mut raw = ByteRecord::new();
    let mut columns: Option<[usize; 8]> = None;
    let mut width = 0;
    let mut table = Table::default();
    let rows = &mut table.pictures;
    let mut by_name: HashMap<String, usize> = HashMap::new();
    // Pictures with a line that cannot be used: there is something on them, whatever another line says.
    let mut not_empty: HashSet<String> = HashSet::new();
    let mut lines = Lines { bytes, at: 0, line: 1 };
    loop {
        let more = reader.read_byte_record(&mut raw).with_context(|| format!("`{name}`: cannot be read as CSV"))?;
        if !more {
            break;
        }
        let line = raw.position().map_or(0, |position| lines.of(position.byte()));
        let row = match StringRecord::from_byte_record(raw.clone()) {
            Ok(row) => row,
            Err(_) => {
                const TEXT: &str = "not UTF-8; save the file as \"CSV UTF-8\" (Excel offers it under that name)";
                ensure!(columns.is_some(), "`{name}`: line {line}: {TEXT}");
                table.faults.push((line, TEXT.to_string()));
                let name = columns.and_then(|columns| std::str::from_utf8(raw.get(columns[0])?).ok());
                not_empty.extend(name.map(|name| name.trim().to_string()));
                continue;
            }
        };
        if row.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let Some(columns) = &columns else {
            columns = Some(header(&row, name)?);
            width = row.len();
            continue;
        };
        // Programs that end each line with a comma add empty fields.
        if row.len() < width || row.iter().skip(width).any(|field| !field.trim().is_empty()) {
            let start = raw.position().map_or(0, |position| position.byte() as usize);
            let text = &bytes[start.min(bytes.len())..(reader.position().byte() as usize).min(bytes.len())];
            let lines = text.trim_ascii().iter().filter(|&&byte| byte == b'\n').count();
            let hint = match lines {
                0 => "a name with a comma needs quotes".to_string(),
                _ => format!("a quote that opens in it closes {} later, or never: mend it", plural(lines, "line")),
            };
            let text = format!("it has {} and the first line has {width}; {hint}", plural(row.len(), "field"));
            table.faults.push((line, text));
            not_empty.extend(row.get(columns[0]).map(|name| name.trim().to_string()));
            continue;
        }
        let field = |i: usize| row.get(columns[i]).unwrap_or_default();
        let raw_field = |i: usize| Some(field(i).to_string()).filter(|text| !text.trim().is_empty());
        // As it stands: a name may begin with a space, and tfgen's own file has it so.
        let filename = field(0);
        if filename.trim().is_empty() {
            table.faults.push((line, "the filename is empty; write it or remove the line".to_string()));
            continue;
        }
        let size = [raw_field(1), raw_field(2)].map(|text| text.map(|text| text.trim().to_string()));
        let index = *by_name.entry(filename.to_string()).or_insert_with(|| {
            rows.push(Rows { filename: filename.to_string(), size: size.clone(), objects: Vec::new(), line });
            rows.len() - 1
        });
        // A line that gives no size disagrees with none.
        let value = |text: &Option<String>| text.as_deref().and_then(number::read).map(|number| number.value);
        let same = |(a, b): (&Option<String>, &Option<String>)| a == b || value(a).is_some_and(|a| value(b) == Some(a));
        if rows[index].size.iter().all(Option::is_none) {
            rows[index].size.clone_from(&size);
        }
        if !size.iter().zip(&rows[index].size).all(same) && size.iter().any(Option::is_some) {
            let in_words = |size: &[Option<String>; 2]| {
                let [width, height] = size.each_ref().map(|text| text.as_deref().map_or("nothing".to_string(), printable));
                format!("{width} x {height}")
            };
            let text = format!("{} here and {} in line {}", in_words(&size), in_words(&rows[index].size), rows[index].line);
            table.sizes.push((line, text));
        }
        // A row with nothing behind the size says that nothing is on the picture.
        if (3..8).all(|i| raw_field(i).is_none()) {
            continue;
        }
        let corners = voc::Corners { xmin: raw_field(4), ymin: raw_field(5), xmax: raw_field(6), ymax: raw_field(7) };
        let object = voc::Object {
            name: raw_field(3).map(|text| text.trim().nfc().collect()),
            corners: Some(corners),
            ..voc::Object::default()
        };
        rows[index].objects.push((format!("line {line}"), object));
    }
    if columns.is_none() {
        bail!("`{name}`: the file is empty; its first line must be {}", COLUMNS.join(","));
    }
    rows.retain(|rows| !rows.objects.is_empty() || !not_empty.contains(rows.filename.trim()));
    Ok(table)
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
        // Old Macs end lines with \r alone.
        let next = self.bytes.iter().skip(self.at + 1).chain([&0]);
        let ends = |&(&byte, &next): &(&u8, &u8)| byte == b'\n' || byte == b'\r' && next != b'\n';
        self.line += self.bytes[self.at..start].iter().zip(next).filter(ends).count() as u64;
        self.at = start;
        self.line
    }
}

/// Where each of our columns stands.
fn header(row: &StringRecord, name: &str) -> Result<[usize; 8]> {
    let mut columns = [0; 8];
    for (column, wanted) in columns.iter_mut().zip(COLUMNS) {
        let mut found = (0..row.len()).filter(|&i| row[i].trim().eq_ignore_ascii_case(wanted));
        let Some(at) = found.next() else {
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
        if let Some(other) = found.next() {
            bail!(
                "`{name}`: columns {} and {} are both `{wanted}`; remove or rename the one that is not meant",
                at + 1,
                other + 1
            );
        }
        *column = at;
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::check::Object;
    use crate::data::dataset::picture::Looked;

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
        let looked = Looked::jpeg(640, 480);
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
        let rows = parse(&bytes, "t.csv").unwrap().pictures;
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
        let rows = parse(text.as_bytes(), "t.csv").unwrap().pictures;
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
            (b"\xb0\xa1,width\n".to_vec(), "line 1: not UTF-8"),
            (b"filename,width,height,class,xmin,ymin,xmax,ymax,XMIN\n".to_vec(), "columns 5 and 9 are both `xmin`"),
        ] {
            let said = format!("{:#}", parse(&text, "t.csv").unwrap_err());
            assert!(said.contains("t.csv") && said.contains(wanted), "{said}");
        }
        assert!(parse(head.as_bytes(), "t.csv").unwrap().pictures.is_empty());
    }

    #[test]
    fn a_faulty_line_is_named_and_the_others_are_read() {
        let head = "filename,width,height,class,xmin,ymin,xmax,ymax\n";
        for (bad, wanted) in [
            (&b"b.jpg,1,1\n"[..], "3 fields"),
            (b"b, c.jpg,1,1,c,1,1,2,2\n", "quotes"),
            (b",1,1,c,1,1,2,2\n", "filename is empty"),
            (b"\xb0\xa1.jpg,1,1,c,1,1,2,2\n", "not UTF-8"),
        ] {
            let good = b"a.jpg,640,480,c,1,1,2,2\n";
            let table = parse(&[head.as_bytes(), good, bad, b"d.jpg,640,480,c,1,1,2,2,,\n"].concat(), "t.csv").unwrap();
            assert_eq!(table.pictures.iter().map(|rows| rows.filename.as_str()).collect::<Vec<_>>(), ["a.jpg", "d.jpg"]);
            let [(3, said)] = table.faults.as_slice() else { panic!("{:?}", table.faults) };
            assert!(said.contains(wanted), "{said}");
        }
        // There is something on b.jpg, though another line has nothing.
        for lines in
            [&b"b.jpg,1,1\nb.jpg,1,1,,,,,\n"[..], b"b.jpg,1,1,,,,,\nb.jpg,1,1\n", b"b.jpg,1,1,,,,,\nb.jpg,1,1,\xb0\xa1,1,1,2,2\n"]
        {
            let table = parse(&[head.as_bytes(), b"a.jpg,1,1,,,,,\n", lines].concat(), "t.csv").unwrap();
            assert_eq!(table.pictures.iter().map(|rows| rows.filename.as_str()).collect::<Vec<_>>(), ["a.jpg"]);
            assert_eq!(table.faults.len(), 1);
        }
        let open = format!("{head}a.jpg,640,480,c,1,1,2,2\n\"b.jpg,640,480,c,1,1,2,2\nc.jpg,640,480,c,1,1,2,2\nd\n");
        let table = parse(open.as_bytes(), "t.csv").unwrap();
        let [(3, said)] = table.faults.as_slice() else { panic!("{:?}", table.faults) };
        assert!(table.pictures.len() == 1 && said.contains("quote") && said.contains("2 lines"), "{said}");
    }

    #[test]
    fn lines_count_whatever_ends_them() {
        for end in ["\n", "\r\n", "\r"] {
            let text =
                ["filename,width,height,class,xmin,ymin,xmax,ymax", "a.jpg,1,1,c,1,1,2,2", "b.jpg,1,1", "", ",1,1,c,1,1,2,2"]
                    .join(end);
            let table = parse(text.as_bytes(), "t.csv").unwrap();
            assert_eq!(table.faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 5], "{end:?}");
        }
    }

    #[test]
    fn lines_that_disagree_about_the_size_are_named() {
        let text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,640,480,c,1,1,2,2\na.jpg,48,480,c,1,1,3,3\n\
                    b.jpg,640,480,c,1,1,2,2\nb.jpg,640.0,480,c,1,1,3,3\n";
        let table = parse(text.as_bytes(), "t.csv").unwrap();
        assert_eq!(table.pictures[0].objects.len(), 2);
        assert_eq!(table.sizes, [(3, "48 x 480 here and 640 x 480 in line 2".to_string())]);
        // The first line that gives a size says what it is.
        let text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,,,c,1,1,2,2\na.jpg,640,480,c,1,1,3,3\na.jpg,64,480,c,1,1,4,4\n";
        let table = parse(text.as_bytes(), "t.csv").unwrap();
        assert_eq!(table.sizes.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4]);
        assert_eq!(table.pictures[0].size, [Some("640".to_string()), Some("480".to_string())]);
    }
}
