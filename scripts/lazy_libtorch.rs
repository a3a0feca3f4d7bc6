//! Lets a linked program start without libtorch: `lazy_libtorch PROGRAM` changes the file in place.
//!
//! Loading libtorch takes a quarter to half a second, which `--help` and `tfgen` have no use for. So the program no longer asks for it (its
//! DT_NEEDED entries go), and what it refers to there becomes weak: null where libtorch is not loaded. Where it is (by LD_PRELOAD: the program
//! starts itself again, `src/net/shim/start.rs`), the dynamic linker fills in every address before `main`, as ever. Nothing else is changed,
//! and the file keeps its size.
//!
//! `scripts/rustc.sh` compiles and runs this after the program has been linked. No linker option does the same: a weak reference is made where a
//! function is declared, and most are in torch-sys's own C++.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SHT_RELA: u32 = 4;
const SHT_DYNAMIC: u32 = 6;
const SHT_DYNSYM: u32 = 11;
const SHT_GNU_VERNEED: u32 = 0x6fff_fffe;
const DT_NEEDED: u64 = 1;
const DT_RUNPATH: u64 = 29;
const STB_GLOBAL: u8 = 1;
const STB_WEAK: u8 = 2;
const SYMBOL: usize = 24;
const DYNAMIC: usize = 16;
const RELA: usize = 24;
/// R_X86_64_COPY, R_AARCH64_COPY: libtorch's data would lie in the program.
const COPIES: [u32; 2] = [5, 1024];

fn main() {
    let program = PathBuf::from(std::env::args_os().nth(1).expect("the program's file"));
    if let Err(e) = relax(&program) {
        eprintln!("{} loads libtorch at every start: {e}", program.display());
    }
}

/// Rewrites `program`, or leaves it as it is.
fn relax(program: &Path) -> Result<()> {
    let elf = Elf::read(program)?;
    let (dynamic_at, dynamic) = elf.section(SHT_DYNAMIC)?.ok_or("it is not linked dynamically")?;
    let (symbols_at, symbols) = elf.section(SHT_DYNSYM)?.ok_or("it has no dynamic symbols")?;
    let strings = elf.strings()?;

    let entries: Vec<(u64, u64)> = dynamic.chunks_exact(DYNAMIC).map(|entry| (u64_at(entry, 0), u64_at(entry, 8))).collect();
    let is_libtorch = |&(tag, value): &(u64, u64)| {
        tag == DT_NEEDED
            && text_at(&strings, value as usize).is_ok_and(|name| name.starts_with("libtorch") || name.starts_with("libc10"))
    };
    let libraries: Vec<&str> =
        entries.iter().filter(|e| is_libtorch(e)).map(|e| text_at(&strings, e.1 as usize)).collect::<Result<_>>()?;
    if libraries.is_empty() {
        return Err("it does not ask for libtorch by name".into());
    }
    let runpath = entries.iter().find(|e| e.0 == DT_RUNPATH).ok_or("it has no RUNPATH")?;
    let folders: Vec<&str> = text_at(&strings, runpath.1 as usize)?.split(':').collect();
    let mut theirs = HashSet::new();
    for library in &libraries {
        let file = folders.iter().map(|folder| Path::new(folder).join(library)).find(|file| file.exists());
        theirs.extend(Elf::read(&file.ok_or_else(|| format!("{library} is not in its RUNPATH"))?)?.defined()?);
    }

    if let Some((_, versions)) = elf.section(SHT_GNU_VERNEED)? {
        let mut at = 0;
        loop {
            let (file, next) = (u32_at(&versions, at + 4), u32_at(&versions, at + 12));
            if libraries.contains(&text_at(&strings, file as usize)?) {
                return Err("libtorch's symbols have versions".into());
            }
            if next == 0 {
                break;
            }
            at += next as usize;
        }
    }
    for relocations in elf.sections(SHT_RELA)? {
        let mut kinds = relocations.1.chunks_exact(RELA).map(|relocation| u32_at(relocation, 8));
        if kinds.any(|kind| COPIES.contains(&kind)) {
            return Err("it holds copies of a library's data".into());
        }
    }

    let mut weak = symbols.clone();
    for symbol in weak.chunks_exact_mut(SYMBOL) {
        let undefined = symbol[6..8] == [0, 0];
        if undefined && symbol[4] >> 4 == STB_GLOBAL && theirs.contains(text_at(&strings, u32_at(symbol, 0) as usize)?) {
            symbol[4] = STB_WEAK << 4 | symbol[4] & 15;
        }
    }
    let mut kept: Vec<u8> = Vec::with_capacity(dynamic.len());
    for (tag, value) in entries.iter().filter(|entry| !is_libtorch(entry)) {
        kept.extend(tag.to_le_bytes());
        kept.extend(value.to_le_bytes());
    }
    // DT_NULL, which ends the table.
    kept.resize(dynamic.len(), 0);

    let file = OpenOptions::new().write(true).open(program)?;
    file.write_all_at(&weak, symbols_at)?;
    // Only now: until then the program starts as it did.
    file.write_all_at(&kept, dynamic_at)?;
    Ok(())
}

/// The section table of a little-endian ELF file of 64 bits.
struct Elf {
    file: File,
    headers: Vec<u8>,
}

impl Elf {
    fn read(path: &Path) -> Result<Elf> {
        let mut file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut head = [0; 64];
        file.read_exact(&mut head)?;
        if head[..6] != *b"\x7fELF\x02\x01" {
            return Err(format!("{} is no little-endian ELF file of 64 bits", path.display()).into());
        }
        let mut headers = vec![0; usize::from(u16_at(&head, 58)) * usize::from(u16_at(&head, 60))];
        file.read_exact_at(&mut headers, u64_at(&head, 40))?;
        if u16_at(&head, 58) != 64 {
            return Err("its section headers are of another size".into());
        }
        Ok(Elf { file, headers })
    }

    /// Offset in the file and bytes of each section of a type.
    fn sections(&self, kind: u32) -> Result<Vec<(u64, Vec<u8>)>> {
        let chosen = self.headers.chunks_exact(64).filter(|header| u32_at(header, 4) == kind);
        chosen.map(|header| self.bytes(header)).collect()
    }

    fn section(&self, kind: u32) -> Result<Option<(u64, Vec<u8>)>> {
        Ok(self.sections(kind)?.into_iter().next())
    }

    fn bytes(&self, header: &[u8]) -> Result<(u64, Vec<u8>)> {
        let (offset, size) = (u64_at(header, 24), u64_at(header, 32));
        let mut bytes = vec![0; usize::try_from(size)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok((offset, bytes))
    }

    /// The string table of the dynamic symbols, which the dynamic section shares.
    fn strings(&self) -> Result<Vec<u8>> {
        let symbols =
            self.headers.chunks_exact(64).find(|header| u32_at(header, 4) == SHT_DYNSYM).ok_or("it has no dynamic symbols")?;
        let header = self.headers.chunks_exact(64).nth(u32_at(symbols, 40) as usize).ok_or("its symbols have no names")?;
        Ok(self.bytes(header)?.1)
    }

    /// The names of the dynamic symbols that it defines.
    fn defined(&self) -> Result<Vec<String>> {
        let strings = self.strings()?;
        let symbols = self.section(SHT_DYNSYM)?.ok_or("it has no dynamic symbols")?.1;
        let defined = symbols.chunks_exact(SYMBOL).filter(|symbol| symbol[6..8] != [0, 0]);
        defined.map(|symbol| Ok(text_at(&strings, u32_at(symbol, 0) as usize)?.to_string())).collect()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn text_at(strings: &[u8], at: usize) -> Result<&str> {
    let rest = strings.get(at..).ok_or("a name outside its table")?;
    let end = rest.iter().position(|&byte| byte == 0).ok_or("a name without an end")?;
    Ok(std::str::from_utf8(&rest[..end])?)
}
