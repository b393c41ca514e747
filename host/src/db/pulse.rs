//! Shows that the database can be written, by writing: for who asks whether the host is ready
//! while nothing else is written.

use super::column::millis;
use super::writer::{WriteError, Writer};
use crate::credential::now;

impl Writer {
    /// # Errors
    /// Where it can't be written.
    pub async fn prove_writable(&self) -> Result<(), WriteError> {
        let at = millis(now());
        self.run(move |db| {
            db.prepare_cached(
                "INSERT INTO installation (key, value) VALUES ('written_at', CAST(?1 AS BLOB))
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute([at])?;
            Ok(())
        })
        .await
    }
}
