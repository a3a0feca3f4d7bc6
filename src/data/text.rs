//! Words on pictures: an embedded font, and the machine's own fonts for letters it lacks (Hangul, kana, Han and others).
//!
//! The embedded font is DejaVu Sans Bold (Bitstream Vera's licence, free to embed): Latin, Greek, Cyrillic, Arabic and
//! more, but no Korean, Japanese or Chinese. For those the usual font folders are searched once; `ODH_FONT` names a font
//! file to look into first. A letter that no font has is drawn as an empty box, and said once in the log.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ab_glyph::{Font, FontRef, FontVec, Glyph, PxScale, ScaleFont, point};
use unicode_normalization::UnicodeNormalization;

/// A letter ready to be drawn: an outlined glyph, or a box for a letter that no font has.
enum Letter {
    Glyph(Box<ab_glyph::OutlinedGlyph>),
    Missing { x: f32, width: f32 },
}

/// One line of text of a certain size.
pub struct Line {
    letters: Vec<Letter>,
    /// Width in pixels.
    pub width: f32,
    /// Height in pixels, from the top of the tallest letters to the bottom of those that hang.
    pub height: f32,
}

/// Lays out one line, `size` pixels high.
pub fn line(text: &str, size: f32) -> Line {
    let mut fonts = fonts().lock().unwrap_or_else(PoisonError::into_inner);
    let scale = PxScale::from(size);
    let embedded = fonts.embedded.as_scaled(scale);
    let (baseline, height) = (embedded.ascent(), embedded.ascent() - embedded.descent());
    let (mut letters, mut x) = (Vec::new(), 0.0);
    // macOS spells Hangul and accents in parts, for which few fonts have glyphs.
    for c in text.nfc().map(|c| if c.is_control() { ' ' } else { c }) {
        let place = fonts.find(c);
        let Some(font) = fonts.get(place) else {
            let width = 0.7 * size;
            letters.push(Letter::Missing { x, width });
            x += width;
            continue;
        };
        let (glyph, advance) = font.glyph(c, scale, x, baseline);
        letters.extend(font.outline(glyph).map(|g| Letter::Glyph(Box::new(g))));
        x += advance;
    }
    Line { letters, width: x, height }
}

impl Line {
    /// Calls `ink(x, y, coverage)` for every pixel that the text touches; coverage is 0 to 1, places are from its top left.
    pub fn draw(&self, mut ink: impl FnMut(i64, i64, f32)) {
        for letter in &self.letters {
            match letter {
                Letter::Glyph(glyph) => {
                    let bounds = glyph.px_bounds();
                    let (left, top) = (bounds.min.x as i64, bounds.min.y as i64);
                    glyph.draw(|x, y, coverage| {
                        ink(left + i64::from(x), top + i64::from(y), coverage.min(1.0));
                    });
                }
                Letter::Missing { x, width } => {
                    let left = (x + 0.1 * width) as i64;
                    let right = (x + 0.9 * width) as i64;
                    let (top, bottom) = ((0.15 * self.height) as i64, (0.8 * self.height) as i64);
                    let edge = ((self.height / 14.0) as i64).max(1);
                    for y in top..bottom {
                        for x in left..right {
                            let inside = x - left >= edge && right - x > edge && y - top >= edge && bottom - y > edge;
                            if !inside {
                                ink(x, y, 1.0);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where a letter's glyph is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Embedded,
    Fallback(usize),
    Nowhere,
}

/// A font of either kind.
enum AnyFont<'a> {
    Embedded(&'a FontRef<'static>),
    Fallback(&'a FontVec),
}

impl AnyFont<'_> {
    fn glyph(&self, c: char, scale: PxScale, x: f32, baseline: f32) -> (Glyph, f32) {
        fn of(font: &impl Font, c: char, scale: PxScale, x: f32, baseline: f32) -> (Glyph, f32) {
            let id = font.glyph_id(c);
            let advance = font.as_scaled(scale).h_advance(id);
            (id.with_scale_and_position(scale, point(x, baseline)), advance)
        }
        match self {
            AnyFont::Embedded(font) => of(font, c, scale, x, baseline),
            AnyFont::Fallback(font) => of(font, c, scale, x, baseline),
        }
    }

    fn outline(&self, glyph: Glyph) -> Option<ab_glyph::OutlinedGlyph> {
        match self {
            AnyFont::Embedded(font) => font.outline_glyph(glyph),
            AnyFont::Fallback(font) => font.outline_glyph(glyph),
        }
    }
}

struct Fonts {
    embedded: FontRef<'static>,
    /// Fonts of this machine that had a letter the embedded one lacks.
    fallbacks: Vec<FontVec>,
    /// Letters that were looked for outside the embedded font.
    known: HashMap<char, Place>,
    /// The machine's font files, likely ones first; found when first needed.
    files: Option<Vec<PathBuf>>,
}

fn fonts() -> &'static Mutex<Fonts> {
    static FONTS: OnceLock<Mutex<Fonts>> = OnceLock::new();
    FONTS.get_or_init(|| {
        let embedded = FontRef::try_from_slice(dejavu::sans::bold());
        assert!(embedded.is_ok(), "the embedded font does not parse");
        let Ok(embedded) = embedded else { unreachable!() };
        Mutex::new(Fonts { embedded, fallbacks: Vec::new(), known: HashMap::new(), files: None })
    })
}

impl Fonts {
    fn get(&self, place: Place) -> Option<AnyFont<'_>> {
        match place {
            Place::Embedded => Some(AnyFont::Embedded(&self.embedded)),
            Place::Fallback(i) => self.fallbacks.get(i).map(AnyFont::Fallback),
            Place::Nowhere => None,
        }
    }

    fn find(&mut self, c: char) -> Place {
        if c.is_whitespace() || has(&self.embedded, c) {
            return Place::Embedded;
        }
        if let Some(&place) = self.known.get(&c) {
            return place;
        }
        let place = match self.fallbacks.iter().position(|font| has(font, c)) {
            Some(i) => Place::Fallback(i),
            None => self.search_files(c),
        };
        self.known.insert(c, place);
        place
    }

    /// Looks for a letter in the machine's fonts.
    fn search_files(&mut self, c: char) -> Place {
        let files = self.files.get_or_insert_with(font_files);
        for path in files.iter() {
            if let Some(font) = font_with(path, c) {
                tracing::debug!("the letter `{c}` is drawn with {}", path.display());
                self.fallbacks.push(font);
                return Place::Fallback(self.fallbacks.len() - 1);
            }
        }
        // One warning a script would be better than one a letter, but one for all is what can be acted upon.
        if !self.known.values().any(|p| matches!(p, Place::Nowhere)) {
            tracing::warn!(
                "no font on this machine has the letter `{c}` (U+{:04X}): it is drawn as an empty box; install a font that \
                 has it (for Korean: fonts-nanum) or name one in the environment variable ODH_FONT",
                u32::from(c)
            );
        }
        Place::Nowhere
    }
}

fn has(font: &impl Font, c: char) -> bool {
    font.glyph_id(c).0 != 0
}

/// The first font of a file that has a letter.
fn font_with(path: &Path, c: char) -> Option<FontVec> {
    // The largest fonts in use (all of Chinese, Japanese and Korean in several weights) have some 100 MB.
    const LARGEST: u64 = 256 << 20;
    if std::fs::metadata(path).ok()?.len() > LARGEST {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    // A collection (.ttc) holds several fonts over one set of glyphs; the first few tell whether the letter is there.
    let count = if bytes.starts_with(b"ttcf") { 4 } else { 1 };
    let index = (0..count).find(|&index| FontRef::try_from_slice_and_index(&bytes, index).is_ok_and(|font| has(&font, c)))?;
    FontVec::try_from_vec_and_index(bytes, index).ok()
}

/// The font files of this machine: `ODH_FONT`, then those whose names promise East Asian letters, bold ones first.
fn font_files() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut folders: Vec<PathBuf> =
        ["/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts", "C:\\Windows\\Fonts"]
            .into_iter()
            .map(PathBuf::from)
            .collect();
    for below_home in [".fonts", ".local/share/fonts", "Library/Fonts"] {
        folders.extend(home.as_ref().map(|h| h.join(below_home)));
    }
    let mut files: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| walkdir::WalkDir::new(folder).max_depth(6).follow_links(true))
        .filter_map(|entry| Some(entry.ok()?.into_path()))
        .filter(|path| {
            let extension = path.extension().map(|e| e.to_ascii_lowercase());
            extension.is_some_and(|e| ["ttf", "otf", "ttc", "otc"].iter().any(|known| e == *known))
        })
        .collect();
    files.sort_by_cached_key(|path| (rank(path), path.clone()));
    files.dedup();
    files.splice(0..0, std::env::var_os("ODH_FONT").map(PathBuf::from));
    files
}

/// How likely a font is the right one, small is likely.
fn rank(path: &Path) -> u8 {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let east_asian = [
        "nanumgothic",
        "notosanscjk",
        "notosanskr",
        "malgun",
        "applesdgothic",
        "nanum",
        "cjk",
        "gothic",
        "unbatang",
        "undotum",
        "baekmuk",
        "wqy",
        "droidsansfallback",
        "ipag",
        "takao",
    ]
    .iter()
    .any(|part| name.contains(part));
    let heavy = name.contains("bold") || name.contains("bd");
    let odd = ["italic", "oblique", "serif", "mono", "thin", "light"].iter().any(|part| name.contains(part));
    match (east_asian, heavy, odd) {
        (true, true, false) => 0,
        (true, false, false) => 1,
        (true, _, true) => 2,
        (false, true, false) => 3,
        (false, false, false) => 4,
        (false, _, true) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(line: &Line) -> usize {
        let mut count = 0;
        line.draw(|_, _, coverage| count += usize::from(coverage > 0.5));
        count
    }

    #[test]
    fn a_longer_text_is_wider_and_a_larger_size_higher() {
        let (short, long, large) = (line("dog", 20.0), line("dog: 97%", 20.0), line("dog", 40.0));
        assert!(long.width > short.width && (large.width / short.width - 2.0).abs() < 0.01);
        assert!((short.height - 20.0).abs() < 0.5);
        assert!(ink(&short) > 50 && ink(&long) > ink(&short));
    }

    #[test]
    fn ink_stays_within_the_line() {
        let line = line("gjpqy|ÄÅ Ж", 30.0);
        line.draw(|x, y, coverage| {
            if coverage > 0.5 {
                assert!((0..=line.width as i64).contains(&x), "{x}");
                assert!((-6..=line.height as i64 + 1).contains(&y), "{y}");
            }
        });
    }

    #[test]
    fn letters_that_no_font_has_leave_a_mark_and_take_room() {
        // A private-use letter: in no font of any machine that we would want.
        let line = line("\u{10FFFD}", 20.0);
        assert!(line.width > 5.0 && ink(&line) > 20);
    }

    #[test]
    fn korean_letters_leave_a_mark_with_or_without_a_font() {
        assert!(ink(&line("너구리", 20.0)) > 60);
    }

    #[test]
    fn letters_in_parts_are_put_together() {
        assert_eq!(line("e\u{301}", 20.0).width, line("é", 20.0).width);
        assert_eq!(line("\u{1102}\u{1165}", 20.0).width, line("너", 20.0).width);
    }

    #[test]
    fn an_empty_text_has_no_width() {
        assert_eq!(line("", 20.0).width, 0.0);
    }
}
