//! Reports on their way out: compressed JSON Lines, a file for each month in which they were
//! stored. What `append` returned for is on the disk. A file is never rewritten, and never cut
//! but where a write of ours was torn off.
//!
//! Each append is one whole gzip member, and a file of members is one gzip file: `zcat` reads it
//! through. A crash can leave half a member at the end, whose reports are still in the database;
//! it is cut off before anything is written behind it.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use crate::db::queries::ReportRow;

/// A file that outgrew this is followed by another: about a million reports, and little enough
/// to be read through when the daemon begins to write behind it.
const LARGEST: u64 = 16 << 20;

#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    /// By month, what is written to now.
    open: BTreeMap<String, Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    number: u32,
    /// Up to here it is whole.
    length: u64,
}

impl Archive {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, open: BTreeMap::new() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends reports, each to its month. When this returns they are on the disk.
    ///
    /// # Errors
    /// The system's. Some of the reports may be in the archive all the same, whole.
    pub fn append(&mut self, reports: &[ReportRow]) -> io::Result<()> {
        let mut months: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for report in reports {
            let lines = months.entry(month(&report.created_at)).or_default();
            serde_json::to_writer(&mut *lines, report)?;
            lines.push(b'\n');
        }
        for (month, lines) in months {
            let mut member = GzEncoder::new(Vec::new(), Compression::default());
            member.write_all(&lines)?;
            let member = member.finish()?;
            let open = self.open_for(month)?;
            if let Err(error) = open.write(&member) {
                // What it left behind is looked at before the next write.
                self.open.remove(month);
                return Err(error);
            }
        }
        Ok(())
    }

    fn open_for(&mut self, month: &str) -> io::Result<&mut Open> {
        let number = match self.open.get(month) {
            Some(open) if open.length < LARGEST => None,
            Some(open) => Some(open.number + 1),
            None => Some(1),
        };
        if let Some(first) = number {
            // Few months are written to at once, and none needs its descriptor for long.
            self.open.clear();
            let open = self.find(month, first)?;
            self.open.insert(month.to_owned(), open);
        }
        self.open.get_mut(month).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The first file of a month that can be written behind.
    fn find(&self, month: &str, first: u32) -> io::Result<Open> {
        // Only the last folder is made: one on a disk that isn't mounted must not appear on
        // another.
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut number = first;
        loop {
            let path = self.folder.join(name(month, number));
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let length = file.metadata()?.len();
            if length < LARGEST {
                match whole_until(&mut file)? {
                    Some(length) => {
                        file.set_len(length)?;
                        file.seek(SeekFrom::Start(length))?;
                        // The name must be as durable as what stands behind it.
                        File::open(&self.folder)?.sync_all()?;
                        return Ok(Open { file, number, length });
                    }
                    None => tracing::warn!(file = %path.display(), "damaged, left as it is"),
                }
            }
            number += 1;
        }
    }
}

impl Open {
    fn write(&mut self, member: &[u8]) -> io::Result<()> {
        self.file.write_all(member)?;
        self.file.sync_data()?;
        self.length += member.len() as u64;
        Ok(())
    }
}

/// `2026-01` of a stored report.
fn month(created_at: &str) -> &str {
    created_at.get(..7).unwrap_or("undated")
}

fn name(month: &str, number: u32) -> String {
    match number {
        1 => format!("reports-{month}.jsonl.gz"),
        number => format!("reports-{month}.{number}.jsonl.gz"),
    }
}

/// The length of the whole members of a file, where at most a torn one follows. None: something
/// else does, and cutting there could take away what is good.
fn whole_until(file: &mut File) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let mut rest = Cursor::new(bytes);
    let mut whole = 0;
    let mut sink = vec![0; 64 << 10];
    while !rest.fill_buf()?.is_empty() {
        let mut member = GzDecoder::new(&mut rest);
        loop {
            match member.read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(whole)),
                Err(_) => return Ok(None),
            }
        }
        whole = rest.position();
    }
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use flate2::bufread::MultiGzDecoder;

    use super::*;
    use crate::report::{Report, Status};

    fn report(id: i64, created_at: &str) -> ReportRow {
        ReportRow {
            id,
            created_at: created_at.to_owned(),
            worker_token: None,
            report: Report {
                cookie_id: "ann".into(),
                profile_id: None,
                service: "shop".into(),
                validate_url: String::new(),
                cookie_keys: [("session".to_owned(), "00112233aabbccdd".to_owned())].into(),
                status: Status::Success,
                message: Some("two\nlines".into()),
                started_at: created_at.to_owned(),
                finished_at: created_at.to_owned(),
                attempt_number: 7,
                meta: serde_json::Map::new(),
            },
        }
    }

    fn lines(path: &Path) -> Vec<i64> {
        let bytes = std::fs::read(path).unwrap();
        let mut text = String::new();
        MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_i64().unwrap();
        text.lines().map(id).collect()
    }

    const JANUARY: &str = "2026-01-31T23:59:59.999Z";
    const FEBRUARY: &str = "2026-02-01T00:00:00.000Z";

    #[test]
    fn each_report_is_a_line_of_its_month_in_a_private_file() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("archive");
        let mut archive = Archive::new(folder.clone());
        archive.append(&[report(1, JANUARY), report(2, FEBRUARY), report(3, JANUARY)]).unwrap();
        archive.append(&[report(4, FEBRUARY)]).unwrap();
        let (first, second) =
            (folder.join("reports-2026-01.jsonl.gz"), folder.join("reports-2026-02.jsonl.gz"));
        assert_eq!((lines(&first), lines(&second)), (vec![1, 3], vec![2, 4]));
        assert_eq!(std::fs::metadata(first).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_member_torn_off_at_any_byte_is_cut_away_and_nothing_whole_with_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("reports-2026-01.jsonl.gz");
        Archive::new(home.path().into()).append(&[report(1, JANUARY)]).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        Archive::new(home.path().into()).append(&[report(2, JANUARY)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in usize::try_from(whole).unwrap()..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            Archive::new(home.path().into()).append(&[report(3, JANUARY)]).unwrap();
            assert_eq!(lines(&path), [1, 3], "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_file_is_left_as_it_is_and_followed_by_another() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("reports-2026-01.jsonl.gz");
        std::fs::write(&path, "somebody's notes").unwrap();
        Archive::new(home.path().into()).append(&[report(1, JANUARY)]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's notes");
        assert_eq!(lines(&home.path().join("reports-2026-01.2.jsonl.gz")), [1]);
    }

    #[test]
    fn a_file_that_outgrew_its_bound_is_followed_by_another() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("reports-2026-01.jsonl.gz");
        File::create(&path).unwrap().set_len(LARGEST).unwrap();
        Archive::new(home.path().into()).append(&[report(1, JANUARY)]).unwrap();
        assert_eq!(lines(&home.path().join("reports-2026-01.2.jsonl.gz")), [1]);
    }

    #[test]
    fn a_folder_whose_parent_is_missing_is_not_made() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("not/mounted");
        let error = Archive::new(folder).append(&[report(1, JANUARY)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!home.path().join("not").exists());
    }
}
