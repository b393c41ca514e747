//! The hosts that share a store: who they are, when each was last heard of, and which of them has a
//! duty that one alone does for all. A home with a file of its own is its only host.

use serde::Serialize;

use super::column::{millis, read_json, read_millis, read_optional_millis};
use super::queries::{Found, Reader, iso, iso_option};
use super::sql::{Connection, Optional as _, params};
use super::writer::{WriteError, Writer};
use crate::config::host::Labels;
use crate::credential::{Millis, now};

type Written<T> = Result<T, WriteError>;

/// A host's word that it lives.
#[derive(Debug, Clone)]
pub struct Beat {
    pub host_id: String,
    /// As it would be called; it gets another one if that is taken.
    pub name: String,
    pub labels: Labels,
    pub version: String,
    pub started_at: Millis,
    /// Attempts that it has open, and as many as it may.
    pub in_flight: u32,
    pub at_most: u32,
    /// The duties that it would take, and for how long.
    pub duties: &'static [&'static str],
    pub hold: Millis,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beaten {
    /// What it is called.
    pub name: String,
    /// The duties that it has.
    pub duties: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRow {
    pub host_id: String,
    pub name: String,
    pub labels: Labels,
    pub version: String,
    #[serde(serialize_with = "iso")]
    pub first_at: Millis,
    #[serde(serialize_with = "iso")]
    pub started_at: Millis,
    #[serde(serialize_with = "iso")]
    pub last_seen_at: Millis,
    /// It was ended in good order.
    #[serde(serialize_with = "iso_option")]
    pub stopped_at: Option<Millis>,
    /// As it said last, and as the journal has it.
    pub in_flight: u32,
    pub at_most: u32,
    pub open_attempts: u32,
    /// Those of them whose lease has run out: another host takes them over.
    pub lapsed: u32,
    pub duties: Vec<String>,
}

impl Writer {
    pub async fn beat_host(&self, beat: Beat) -> Written<Beaten> {
        let at = now();
        self.run(move |db| beat_host(db, &beat, at)).await
    }

    /// Says that a host ends in good order; its duties are free.
    pub async fn stop_host(&self, host_id: &str) -> Written<()> {
        let (host, at) = (host_id.to_owned(), now());
        self.run(move |db| {
            db.prepare_cached("DELETE FROM duties WHERE host_id = ?1")?.execute([&host])?;
            db.prepare_cached("UPDATE hosts SET stopped_at = ?2, in_flight = 0 WHERE host_id = ?1")?
                .execute(params![host, millis(at)])?;
            Ok(())
        })
        .await
    }
}

fn beat_host(db: &Connection, beat: &Beat, at: Millis) -> Written<Beaten> {
    db.follow_clock()?;
    let name = name_of(db, beat)?;
    db.prepare_cached(
        "INSERT INTO hosts (host_id, name, labels_json, version, first_at, started_at, last_seen_at,
             in_flight, at_most)
         VALUES (?1, ?2, ?3, ?4, ?6, ?5, ?6, ?7, ?8)
         ON CONFLICT (host_id) DO UPDATE SET
             name = excluded.name, labels_json = excluded.labels_json, version = excluded.version,
             started_at = excluded.started_at, last_seen_at = excluded.last_seen_at,
             in_flight = excluded.in_flight, at_most = excluded.at_most, stopped_at = NULL",
    )?
    .execute(params![
        beat.host_id,
        name,
        super::commands::json(&beat.labels)?,
        beat.version,
        millis(beat.started_at),
        millis(at),
        beat.in_flight,
        beat.at_most,
    ])?;
    let mut take = db.prepare_cached(
        "INSERT INTO duties (duty, host_id, held_until) VALUES (?1, ?2, ?3)
         ON CONFLICT (duty) DO UPDATE SET host_id = excluded.host_id, held_until = excluded.held_until
         WHERE duties.host_id = excluded.host_id OR duties.held_until <= ?4",
    )?;
    let mut duties = Vec::new();
    for duty in beat.duties {
        if take.execute(params![duty, beat.host_id, millis(at + beat.hold), millis(at)])? == 1 {
            duties.push(*duty);
        }
    }
    Ok(Beaten { name, duties })
}

/// The name that a host has, or gets. Machines are often called alike.
fn name_of(db: &Connection, beat: &Beat) -> Written<String> {
    db.hold("names of hosts")?;
    let owner: Option<String> = db
        .prepare_cached("SELECT host_id FROM hosts WHERE name = ?1")?
        .query_row([&beat.name], |row| row.get(0))
        .optional()?;
    Ok(match owner {
        Some(other) if other != beat.host_id => format!("{}-{}", beat.name, &beat.host_id[..4]),
        _ => beat.name.clone(),
    })
}

impl Reader {
    /// Every host there ever was, by name.
    pub fn hosts(&self, now: Millis) -> Found<Vec<HostRow>> {
        let duties: Vec<(String, String)> = self.all(
            "SELECT host_id, duty FROM duties WHERE held_until > ?1 ORDER BY duty",
            [millis(now)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let open: Vec<(String, bool)> =
            self.all("SELECT owner, lease_until <= ?1 FROM journal", [millis(now)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let count = |host: &str, lapsed: bool| {
            let of = |(owner, over): &&(String, bool)| {
                owner.split_once(':').is_some_and(|(id, _)| id == host) && (*over || !lapsed)
            };
            u32::try_from(open.iter().filter(of).count()).unwrap_or(u32::MAX)
        };
        let mut hosts = self.all(
            "SELECT host_id, name, labels_json, version, first_at, started_at, last_seen_at, stopped_at,
                    in_flight, at_most
             FROM hosts ORDER BY name",
            [],
            |row| {
                Ok(HostRow {
                    host_id: row.get(0)?,
                    name: row.get(1)?,
                    labels: read_json(row, 2)?,
                    version: row.get(3)?,
                    first_at: read_millis(row, 4)?,
                    started_at: read_millis(row, 5)?,
                    last_seen_at: read_millis(row, 6)?,
                    stopped_at: read_optional_millis(row, 7)?,
                    in_flight: row.get(8)?,
                    at_most: row.get(9)?,
                    open_attempts: 0,
                    lapsed: 0,
                    duties: Vec::new(),
                })
            },
        )?;
        for host in &mut hosts {
            host.open_attempts = count(&host.host_id, false);
            host.lapsed = count(&host.host_id, true);
            let own = |(id, duty): &(String, String)| (*id == host.host_id).then(|| duty.clone());
            host.duties = duties.iter().filter_map(own).collect();
        }
        Ok(hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    const AT: Millis = 1_800_000_000_000;

    fn beat(host_id: &str) -> Beat {
        Beat {
            host_id: host_id.into(),
            name: "box".into(),
            labels: Labels::from([("region".into(), "eu".into())]),
            version: "1.2.3".into(),
            started_at: AT,
            in_flight: 2,
            at_most: 8,
            duties: &["alerts", "retention"],
            hold: 20_000,
        }
    }

    #[test]
    fn one_host_alone_has_a_duty_until_it_says_nothing_for_as_long_as_it_holds() {
        let scratch = Scratch::new();
        let db = scratch.connection();
        let (one, two) = (beat("aaaa000000000001"), beat("bbbb000000000002"));
        assert_eq!(beat_host(&db, &one, AT).unwrap().duties, ["alerts", "retention"]);
        assert_eq!(beat_host(&db, &two, AT + 1).unwrap().duties, Vec::<&str>::new());
        assert_eq!(beat_host(&db, &one, AT + 15_000).unwrap().duties.len(), 2);
        assert!(beat_host(&db, &two, AT + 34_999).unwrap().duties.is_empty());
        assert_eq!(beat_host(&db, &two, AT + 35_000).unwrap().duties.len(), 2);
        assert!(beat_host(&db, &one, AT + 35_001).unwrap().duties.is_empty(), "it came back too late");
        let hosts = scratch.reader().hosts(AT + 40_000).unwrap();
        let seen: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.duties.len())).collect();
        assert_eq!(seen, [("box", 0), ("box-bbbb", 2)], "machines that are called alike are told apart");
        assert_eq!(hosts[0].labels["region"], "eu");
    }
}
