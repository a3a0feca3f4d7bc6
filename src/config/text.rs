//! Protobuf text format: messages of `proto/` read from text with line and column in every error, and written back as Google's tools write them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use miette::Diagnostic;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, Value};

use crate::proto::DESCRIPTORS;

/// Characters of a line that is still shown with a fault in it.
const MAX_LINE: usize = 400;

/// The text of a file, whose bytes must be UTF-8 (a byte order mark is passed over).
///
/// # Errors
/// If the file cannot be read, or is not UTF-8 (the line is named).
pub fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
        anyhow!("{}:{line}: not UTF-8 text; save the file as UTF-8", path.display())
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// The descriptor of a message of `proto/`, by its full name.
///
/// # Errors
/// If there is no such message: a bug of ours.
pub fn descriptor(full_name: &str) -> Result<MessageDescriptor> {
    DESCRIPTORS.get_message_by_name(full_name).with_context(|| format!("no message {full_name} in proto/"))
}

/// Parses the text of one message of type `full_name`; `source` is what errors call the text (a path).
///
/// # Errors
/// `SOURCE:LINE:COLUMN: what is wrong`, then the line itself with a mark under the place. An unknown field or value
/// comes with the nearest known one.
pub fn parse_dynamic(full_name: &str, text: &str, source: &str) -> Result<DynamicMessage> {
    let descriptor = descriptor(full_name)?;
    DynamicMessage::parse_text_format(descriptor, text).map_err(|error| {
        let span = error.labels().and_then(|mut labels| labels.next()).map(|l| (l.offset(), l.len()));
        explain(&error.to_string(), span, text, source)
    })
}

/// [`parse_dynamic`], as the prost type.
///
/// # Errors
/// As [`parse_dynamic`].
pub fn parse<T: prost::Message + Default>(full_name: &str, text: &str, source: &str) -> Result<T> {
    parse_dynamic(full_name, text, source)?.transcode_to().with_context(|| format!("{source}: cannot be read as {full_name}"))
}

/// A prost message with its descriptor, so that its fields can be walked.
///
/// # Errors
/// If `full_name` is not the message's own type: a bug of ours.
pub fn reflect<T: prost::Message>(full_name: &str, message: &T) -> Result<DynamicMessage> {
    let mut dynamic = DynamicMessage::new(descriptor(full_name)?);
    dynamic.transcode_from(message).with_context(|| format!("cannot be walked as {full_name}"))?;
    Ok(dynamic)
}

/// The message as text, one field a line in the order of the field numbers, indented by two.
pub fn to_text(message: &DynamicMessage) -> String {
    let mut out = String::new();
    write_fields(&mut out, message, 0);
    out
}

fn write_fields(out: &mut String, message: &DynamicMessage, indent: usize) {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());
    for (field, value) in fields {
        let one = std::slice::from_ref(value);
        let values = value.as_list().unwrap_or(one);
        for value in values {
            let _ = write!(out, "{:indent$}{}", "", field.name());
            match value {
                Value::Message(inner) => {
                    out.push_str(" {\n");
                    write_fields(out, inner, indent + 2);
                    let _ = writeln!(out, "{:indent$}}}", "");
                }
                _ => {
                    out.push_str(": ");
                    write_scalar(out, value, &field.kind());
                    out.push('\n');
                }
            }
        }
    }
}

/// A number, word or quoted string as the text format has it; empty for a message or a list.
pub fn scalar(value: &Value, kind: &Kind) -> String {
    let mut out = String::new();
    write_scalar(&mut out, value, kind);
    out
}

fn write_scalar(out: &mut String, value: &Value, kind: &Kind) {
    let _ = match value {
        Value::Bool(v) => write!(out, "{v}"),
        Value::I32(v) => write!(out, "{v}"),
        Value::I64(v) => write!(out, "{v}"),
        Value::U32(v) => write!(out, "{v}"),
        Value::U64(v) => write!(out, "{v}"),
        Value::F32(v) => write!(out, "{v:?}"),
        Value::F64(v) => write!(out, "{v:?}"),
        Value::String(v) => {
            write_quoted(out, v);
            Ok(())
        }
        Value::Bytes(v) => {
            out.push('"');
            for byte in v.iter() {
                let _ = write!(out, "\\{byte:03o}");
            }
            out.push('"');
            Ok(())
        }
        Value::EnumNumber(number) => match kind.as_enum().and_then(|e| e.get_value(*number)) {
            Some(value) => write!(out, "{}", value.name()),
            None => write!(out, "{number}"),
        },
        // Maps do not occur in proto/, messages and lists are written by write_fields.
        Value::Message(_) | Value::List(_) | Value::Map(_) => Ok(()),
    };
}

/// Letters beyond ASCII stay as they are: protobuf reads UTF-8 in strings, and so do people.
fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:03o}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The nearest of `candidates`, if it is near enough to be what was meant.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(typed, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `source:line:column: message`, the line, and a mark under the place.
fn explain(message: &str, span: Option<(usize, usize)>, text: &str, source: &str) -> anyhow::Error {
    let mut note = String::new();
    let (offset, len) = match span {
        Some((offset, len)) => (offset.min(text.len()), len),
        None => {
            if let Some(open) = unclosed_brace(text) {
                let (line, column) = position(text, open);
                let _ = write!(note, "; the brace opened at {line}:{column} is not closed");
            }
            (text.trim_end().len(), 1)
        }
    };
    let (line, column) = position(text, offset);
    let found = text.get(offset..offset + len).unwrap_or_default();
    if message == "invalid string escape" {
        let _ = write!(
            note,
            " in {}: a backslash starts an escape; in a Windows path write / or double every backslash",
            found.lines().next().unwrap_or_default()
        );
    } else if let Some(advice) = advice(message, found) {
        note.push_str(&advice);
    }
    let shown = text.lines().nth(line - 1).unwrap_or_default();
    if shown.chars().count() > MAX_LINE {
        return anyhow!("{source}:{line}:{column}: {message}{note}");
    }
    let width = found.lines().next().map_or(1, |l| l.chars().count()).max(1);
    // Tabs are kept in the margin so that the mark stands under the place on any terminal.
    let margin: String = shown.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    anyhow!("{source}:{line}:{column}: {message}{note}\n  | {shown}\n  | {margin}{}", "^".repeat(width))
}

/// What else to say about a name that is not known: the nearest one, or where a field of this name belongs.
fn advice(message: &str, found: &str) -> Option<String> {
    let owner = message.rsplit('\'').nth(1)?;
    if message.contains("not found for message") {
        let descriptor = DESCRIPTORS.get_message_by_name(owner)?;
        let names: Vec<String> = descriptor.fields().map(|f| f.name().to_string()).collect();
        let mut homes: Vec<String> = DESCRIPTORS
            .all_messages()
            .filter(|m| m.package_name() == descriptor.package_name() && m.get_field_by_name(found).is_some())
            .map(|m| m.name().to_string())
            .collect();
        homes.sort();
        return Some(match nearest(found, names.iter().map(String::as_str)) {
            Some(name) => format!("; did you mean `{name}`?"),
            None if !homes.is_empty() => format!("; it is a field of {}", homes.join(", ")),
            None => format!("; its fields are {}", names.join(", ")),
        });
    }
    if message.contains("was not found for enum") {
        let values = DESCRIPTORS.get_enum_by_name(owner)?;
        let names: Vec<String> = values.values().map(|v| v.name().to_string()).collect();
        return Some(format!("; it must be one of {}", names.join(", ")));
    }
    None
}

/// Line and column of a byte, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    (1 + before.matches('\n').count(), 1 + before[start..].chars().count())
}

/// The innermost brace that is still open at the end of the text, strings and comments aside.
fn unclosed_brace(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(q), c) if c == q => quote = None,
            (Some(_), '\n') => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') => {
                for (_, c) in chars.by_ref() {
                    if c == '\n' {
                        break;
                    }
                }
            }
            (None, '{' | '<' | '[') => open.push(i),
            (None, '}' | '>' | ']') => {
                open.pop();
            }
            _ => {}
        }
    }
    open.pop()
}

/// Refuses text that is empty but for comments: an empty file is never what was meant.
///
/// # Errors
/// If nothing but white space and comments is there.
pub fn refuse_empty(text: &str, source: &str) -> Result<()> {
    if text.lines().all(|line| matches!(line.trim().chars().next(), None | Some('#'))) {
        bail!("{source}: the file is empty; fill it, or delete it");
    }
    Ok(())
}
