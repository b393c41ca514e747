//! The writing threads of a PostgreSQL server. Each takes the next command, runs it in a transaction
//! of its own and answers after the commit. A connection that is lost on the way is no answer: the
//! server is asked afterwards whether that very transaction was committed, so that no command is
//! done twice and none is called done that isn't.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::super::sql::postgres::Session;
use super::{FIRST_PAUSE, Job, Keep, Progress, Server, Stop, TRIES, come_by};
use crate::db::migrations;
use crate::db::sql::{self, Connection};

pub(super) fn serve(
    server: &Arc<Server>,
    jobs: &Mutex<mpsc::Receiver<Box<dyn Job>>>,
    progress: &watch::Sender<Progress>,
) {
    let mut connection = None;
    loop {
        // Whoever waits here is the next to be given one; the others wait for the lock.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(job) = next else { return };
        let mut batch = [job];
        let (began, mut failed_tries) = (Instant::now(), 0);
        let persisted = persist(server, &mut connection, &mut batch, &mut failed_tries);
        let [job] = batch;
        let was_failing = progress.borrow().failing.is_some();
        progress.send_modify(|so_far| {
            so_far.commits += u64::from(persisted.is_ok());
            so_far.commands += u64::from(persisted.is_ok());
            so_far.failed_tries += failed_tries;
            so_far.busy += began.elapsed();
            so_far.failing = persisted.as_ref().err().cloned();
        });
        match persisted {
            Ok(()) => {
                if was_failing {
                    tracing::info!("the database can be written again");
                }
                job.committed();
            }
            Err(reason) => {
                tracing::error!(
                    severity = "critical",
                    tries = TRIES,
                    %reason,
                    "the database can't be written: no rotation starts until it can"
                );
                job.unavailable(&reason);
            }
        }
    }
}

/// What became of a transaction.
enum Outcome {
    Committed,
    /// Nothing of it stands.
    TakenBack(String),
    /// It was to be committed, and the answer was lost.
    InDoubt(Transaction, String),
}

/// By what a transaction can be asked after.
#[derive(Clone)]
struct Transaction {
    number: String,
    /// Of the server that gave the number (`Greeting::memory`). A crash forgets numbers that were
    /// given, and a standby may never have heard of them: then another transaction gets the same.
    memory: Option<String>,
}

/// Commits one command, with a bounded number of tries.
fn persist(
    server: &Arc<Server>,
    connection: &mut Option<Connection>,
    batch: &mut [Box<dyn Job>],
    failed: &mut u64,
) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    let mut doubt: Option<Transaction> = None;
    for tried in 1..=TRIES {
        let outcome = match (connected(server, connection), &doubt) {
            (Err(error), _) => Err(error),
            (Ok(db), None) => transact(db, batch),
            (Ok(db), Some(transaction)) => Ok(ask_after(db, transaction)),
        };
        let reason = match outcome {
            Ok(Outcome::Committed) => return Ok(()),
            Ok(Outcome::TakenBack(reason)) => {
                doubt = None;
                reason
            }
            Ok(Outcome::InDoubt(transaction, reason)) => {
                doubt = Some(transaction);
                reason
            }
            Err(reason) => reason,
        };
        *failed += 1;
        if connection.as_ref().is_some_and(|db| !is_usable(db)) {
            *connection = None;
        }
        if tried == TRIES {
            return Err(reason);
        }
        tracing::warn!(%reason, tried, "a database transaction failed, trying again");
        thread::sleep(pause);
        pause *= 3;
    }
    Err(String::from("no try was made"))
}

fn connected<'c>(
    server: &Arc<Server>,
    connection: &'c mut Option<Connection>,
) -> Result<&'c Connection, String> {
    match connection {
        Some(db) => Ok(db),
        None => {
            let session = server.session().map_err(|error| chain(&error))?;
            Ok(connection.insert(Connection::Postgres(session)))
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

fn session(db: &Connection) -> Option<&Session> {
    match db {
        Connection::Postgres(session) => Some(session),
        Connection::Sqlite(_) => None,
    }
}

fn is_usable(db: &Connection) -> bool {
    session(db).is_some_and(|session| session.is_open() && !session.is_in_transaction())
}

/// Runs a command in a transaction. An error says that nothing of it stands.
fn transact(db: &Connection, batch: &mut [Box<dyn Job>]) -> Result<Outcome, String> {
    come_by(batch, 0);
    let transaction = begin(db)?;
    match run(db, batch, Keep::Whole) {
        Err(Stop::HalfDone) => {
            // Its own error is its answer, and what it wrote before goes.
            roll_back(db)?;
            let transaction = begin(db)?;
            match run(db, batch, Keep::Savepoints) {
                Ok(()) => Ok(commit(db, batch, transaction)),
                Err(Stop::HalfDone) => Err(String::from("a savepoint did not take a command back")),
                Err(Stop::Failed(error)) => {
                    roll_back(db)?;
                    Err(error.to_string())
                }
            }
        }
        Err(Stop::Failed(error)) => {
            roll_back(db)?;
            Err(error.to_string())
        }
        Ok(()) => Ok(commit(db, batch, transaction)),
    }
}

/// Begins. What everything moved away from while this host looked elsewhere is written no more: the
/// lock waits for a move under way, and what is asked after it sees its end.
fn begin(db: &Connection) -> Result<Transaction, String> {
    let session = session(db).ok_or("no server")?;
    let begun = session
        .ask(
            "BEGIN; LOCK TABLE installation IN ROW EXCLUSIVE MODE;
             SELECT pg_current_xact_id(), (SELECT count(*) FROM installation WHERE key = 'moved_to'),
                 (SELECT version FROM keywheel_schema)",
        )
        .map_err(|error| sql::Error::from(error).to_string())
        .and_then(|row| match row.as_slice() {
            // A newer host may have changed the schema under one that runs.
            [number, moved, schema] if moved == "0" && *schema == migrations::current().to_string() => {
                Ok(number.clone())
            }
            [_, moved, schema] if moved == "0" => Err(format!(
                "the store has schema {schema}, this binary writes {}; hint: a newer keywheel brought it up to date, start that here too",
                migrations::current()
            )),
            _ => Err(String::from(
                "the store is retired; hint: `keywheel store show` says where everything moved",
            )),
        });
    // What failed after the first word has left a transaction behind.
    if begun.is_err()
        && let Err(error) = db.execute_batch("ROLLBACK")
    {
        tracing::debug!(%error, "a transaction that was not begun whole did not end cleanly");
    }
    Ok(Transaction { number: begun?, memory: session.memory() })
}

fn run(db: &Connection, batch: &mut [Box<dyn Job>], keep: Keep) -> Result<(), Stop> {
    for job in batch.iter_mut() {
        job.run(db, keep)?;
    }
    Ok(())
}

fn commit(db: &Connection, batch: &[Box<dyn Job>], transaction: Transaction) -> Outcome {
    come_by(batch, 1);
    match db.execute_batch("COMMIT") {
        Ok(()) => {
            come_by(batch, 2);
            Outcome::Committed
        }
        Err(error) => Outcome::InDoubt(transaction, error.to_string()),
    }
}

fn roll_back(db: &Connection) -> Result<(), String> {
    // A server that is lost, or that is waited for in vain, takes back by itself.
    if db.is_in_transaction() && session(db).is_some_and(Session::is_open) {
        db.execute_batch("ROLLBACK").map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What became of a transaction whose commit wasn't answered.
fn ask_after(db: &Connection, transaction: &Transaction) -> Outcome {
    let doubt = |why: &str| Outcome::InDoubt(transaction.clone(), why.to_owned());
    let Some(session) = session(db) else { return doubt("no server") };
    // The number is the server's own, digits alone.
    let asked = session.ask(&format!("SELECT pg_xact_status('{}')", transaction.number));
    let is_who_was_asked = transaction.memory.is_some() && transaction.memory == session.memory();
    match asked.as_ref().map(|answer| answer.first().map(String::as_str)) {
        Ok(Some("committed")) if is_who_was_asked => Outcome::Committed,
        Ok(Some("committed")) => doubt(
            "its commit was under way when the server crashed or was replaced, which can't tell what became of it",
        ),
        // Whoever has the number: had it been committed, it would stand.
        Ok(Some("aborted")) => Outcome::TakenBack(String::from("its connection was lost before the commit")),
        // The server hasn't noticed yet that its client is gone, or is still at it.
        Ok(Some("in progress")) => doubt("its commit is still under way"),
        Ok(_) => doubt("the server can't tell what became of a commit"),
        Err(error) => doubt(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::scratch::{Scratch, is_on_postgres};

    #[test]
    fn a_transaction_whose_first_question_fails_is_known_to_be_open() {
        if !is_on_postgres() {
            return;
        }
        let scratch = Scratch::new();
        let db = scratch.connection();
        let session = super::session(&db).expect("a server's");
        session.ask("BEGIN; SELECT 1 / 0").expect_err("a division by zero");
        assert!(db.is_in_transaction());
        assert!(!super::is_usable(&db));
        super::roll_back(&db).expect("it ends");
        assert!(super::is_usable(&db));
        assert_eq!(session.ask("SELECT 7").expect("an answer"), ["7"]);
    }
}
