//! A sealed stream: what is too long for one value and leaves the home, such as a backup. Pieces
//! of 64 KiB, each sealed with XChaCha20-Poly1305 for its place (the STREAM construction), so that
//! none can be changed, moved, left out or cut off unnoticed. The head, which names the version
//! and the key, is sealed with every piece. It knows nothing of what is in the stream.

use std::io::{self, Read, Write};

use aead_stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::Payload;
use zeroize::Zeroizing;

use super::{KEY_BYTES, derive};

/// The first line of every sealed stream; a person who looks into the file sees what it is.
const MAGIC: &[u8; 16] = b"keywheel backup\n";
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
/// XChaCha20's 24 bytes without the counter and the mark of the last piece.
const NONCE_BYTES: usize = 19;
const HEAD_BYTES: usize = MAGIC.len() + 1 + KEY_ID_BYTES + NONCE_BYTES;

const PIECE: usize = 64 << 10;
const TAG_BYTES: usize = 16;

/// For this purpose alone: who has it opens backups and nothing else of the vault's.
const LABEL: &[u8] = b"keywheel vault v1: backup stream";
const ID_LABEL: &[u8] = b"keywheel vault v1: backup key id";

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("this is no backup of Keywheel's: it doesn't begin like one")]
    Foreign,
    #[error(
        "this backup has format {found}, this binary knows {VERSION}; hint: open it with the keywheel that made it, or a newer one"
    )]
    Version { found: u8 },
    #[error(
        "this backup was sealed with another master key (backup {sealed}, given {given}); hint: name the right one with --master-key"
    )]
    OtherKey { sealed: String, given: String },
    #[error("the backup was cut short or changed, in piece {piece} of 64 KiB; hint: use another copy of it")]
    Damaged { piece: u64 },
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Seals and opens streams.
pub struct StreamKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
    id: [u8; KEY_ID_BYTES],
}

impl std::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamKey").field("id", &hex::encode(self.id)).finish_non_exhaustive()
    }
}

impl StreamKey {
    pub(super) fn of(master: &[u8]) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&derive(master, ID_LABEL)[..KEY_ID_BYTES]);
        Self { key: derive(master, LABEL), id }
    }

    /// Tells master keys apart, and says nothing else of them.
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }

    /// Seals what is written, until `finish`.
    ///
    /// # Errors
    /// The system's: no random bytes, or the head can't be written.
    pub fn seal<W: Write>(&self, mut out: W) -> io::Result<Sealing<W>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let head = [MAGIC.as_slice(), &[VERSION], &self.id, &nonce].concat();
        out.write_all(&head)?;
        let encryptor = EncryptorBE32::<XChaCha20Poly1305>::new((&*self.key).into(), (&nonce).into());
        Ok(Sealing { encryptor, head, piece: Vec::with_capacity(PIECE), out })
    }

    /// Opens what is read. Not a byte is given out before its piece was found genuine; that the
    /// stream is whole is known at its end alone.
    ///
    /// # Errors
    /// No stream of ours, one of another version, or sealed with another key; in reading, one that
    /// was changed or cut short. Each is a `StreamError` within.
    pub fn open<R: Read>(&self, mut from: R) -> io::Result<Opening<R>> {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        from.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
        if !head.starts_with(MAGIC) {
            return Err(StreamError::Foreign.into());
        }
        let rest = &head[MAGIC.len()..];
        match rest.first() {
            Some(&VERSION) if head.len() == HEAD_BYTES => {}
            Some(&found) if found != VERSION => return Err(StreamError::Version { found }.into()),
            _ => return Err(StreamError::Damaged { piece: 0 }.into()),
        }
        let (id, nonce) = rest[1..].split_at(KEY_ID_BYTES);
        if id != self.id {
            let (sealed, given) = (hex::encode(id), hex::encode(self.id));
            return Err(StreamError::OtherKey { sealed, given }.into());
        }
        let nonce: &[u8; NONCE_BYTES] = nonce.try_into().expect("the head's length was looked at");
        let decryptor = DecryptorBE32::<XChaCha20Poly1305>::new((&*self.key).into(), nonce.into());
        let next = read_piece(&mut from)?;
        Ok(Opening { decryptor: Some(decryptor), head, from, next, open: Vec::new(), given: 0, pieces: 0 })
    }
}

fn read_piece(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE + TAG_BYTES);
    from.take((PIECE + TAG_BYTES) as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// A stream that is being sealed. Dropped before `finish` it stays one that was cut short.
pub struct Sealing<W> {
    encryptor: EncryptorBE32<XChaCha20Poly1305>,
    head: Vec<u8>,
    piece: Vec<u8>,
    out: W,
}

impl<W: Write> Sealing<W> {
    /// # Errors
    /// The receiver's.
    pub fn finish(mut self) -> io::Result<W> {
        let last = Payload { msg: &self.piece, aad: &self.head };
        let sealed = self.encryptor.encrypt_last(last).map_err(|_| too_long())?;
        self.out.write_all(&sealed)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Past 256 TiB.
fn too_long() -> io::Error {
    io::Error::other("the stream is too long to be sealed")
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece waits for more, for the last one is sealed otherwise.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            let piece = Payload { msg: &self.piece, aad: &self.head };
            let sealed = self.encryptor.encrypt_next(piece).map_err(|_| too_long())?;
            self.out.write_all(&sealed)?;
            self.piece.clear();
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A stream that is being opened.
pub struct Opening<R> {
    /// None: the last piece was opened.
    decryptor: Option<DecryptorBE32<XChaCha20Poly1305>>,
    head: Vec<u8>,
    from: R,
    /// Read ahead: which piece is the last shows by what follows it.
    next: Vec<u8>,
    open: Vec<u8>,
    given: usize,
    pieces: u64,
}

impl<R: Read> Opening<R> {
    fn open_next(&mut self) -> io::Result<()> {
        let Some(mut decryptor) = self.decryptor.take() else { return Ok(()) };
        self.pieces += 1;
        let damaged = |_| io::Error::from(StreamError::Damaged { piece: self.pieces });
        let piece = std::mem::replace(&mut self.next, read_piece(&mut self.from)?);
        let payload = Payload { msg: &piece, aad: &self.head };
        self.open = if self.next.is_empty() {
            decryptor.decrypt_last(payload).map_err(damaged)?
        } else {
            let open = decryptor.decrypt_next(payload).map_err(damaged)?;
            self.decryptor = Some(decryptor);
            open
        };
        self.given = 0;
        Ok(())
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.open.len() && self.decryptor.is_some() {
            self.open_next()?;
        }
        let length = into.len().min(self.open.len() - self.given);
        into[..length].copy_from_slice(&self.open[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> StreamKey {
        StreamKey::of(&[fill; KEY_BYTES])
    }

    fn seal(bytes: &[u8]) -> Vec<u8> {
        let mut sealing = key(1).seal(Vec::new()).unwrap();
        sealing.write_all(bytes).unwrap();
        sealing.finish().unwrap()
    }

    fn open(sealed: &[u8], by: &StreamKey) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut opening = by.open(sealed).map_err(|error| error.to_string())?;
        opening.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    #[test]
    fn a_stream_of_any_length_opens_to_what_was_sealed() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sealed = seal(&bytes);
            assert_eq!(open(&sealed, &key(1)).unwrap(), bytes, "{length}");
            assert_ne!(sealed, seal(&bytes), "sealed twice it is another");
        }
    }

    #[test]
    fn a_change_a_cut_and_a_swap_of_pieces_are_noticed_wherever_they_are() {
        let bytes = vec![7; 2 * PIECE + 100];
        let sealed = seal(&bytes);
        let piece = PIECE + TAG_BYTES;
        let places = [MAGIC.len() + 1 + KEY_ID_BYTES, HEAD_BYTES, HEAD_BYTES + piece, sealed.len() - 1];
        for at in places {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &key(1)).unwrap_err().contains("cut short or changed"), "byte {at}");
        }
        for length in
            [20, HEAD_BYTES, HEAD_BYTES + 5, HEAD_BYTES + piece, HEAD_BYTES + 2 * piece, sealed.len() - 1]
        {
            assert!(open(&sealed[..length], &key(1)).unwrap_err().contains("cut short"), "cut at {length}");
        }
        let mut swapped = sealed[..HEAD_BYTES].to_vec();
        swapped.extend_from_slice(&sealed[HEAD_BYTES + piece..HEAD_BYTES + 2 * piece]);
        swapped.extend_from_slice(&sealed[HEAD_BYTES..HEAD_BYTES + piece]);
        swapped.extend_from_slice(&sealed[HEAD_BYTES + 2 * piece..]);
        assert!(open(&swapped, &key(1)).is_err());
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(open(&longer, &key(1)).is_err(), "nothing may follow");
    }

    #[test]
    fn what_is_foreign_newer_or_anothers_is_told_apart() {
        let sealed = seal(b"x");
        assert!(open(b"SQLite format 3\0and more", &key(1)).unwrap_err().contains("no backup of Keywheel's"));
        assert!(open(b"", &key(1)).unwrap_err().contains("no backup"));
        assert!(open(&sealed, &key(2)).unwrap_err().contains("another master key"));
        let mut newer = sealed;
        newer[MAGIC.len()] = 9;
        assert!(open(&newer, &key(1)).unwrap_err().contains("has format 9"));
    }

    #[test]
    fn the_key_shows_nothing_but_its_id() {
        let text = format!("{:?}", key(0x41));
        assert!(text.contains("id") && !text.contains("key:") && !text.contains("65, 65"), "{text}");
    }
}
