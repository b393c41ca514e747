//! Deaths at every step, on a real server: where `KEYWHEEL_TEST_POSTGRES` names none, the
//! end-to-end tests are all there is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::config::TEMPLATE;
use crate::db::scratch::{add_rows, at_server};
use crate::db::{Reader, Writer};

struct Moving {
    _folder: tempfile::TempDir,
    home: Home,
    server: Store,
}

impl Moving {
    fn new() -> Option<Self> {
        let server = Store::Server(at_server()?);
        let folder = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(folder.path().join("home"))).unwrap();
        home.make_folders().unwrap();
        fs::write(home.config(), TEMPLATE).unwrap();
        let moving = Self { _folder: folder, home, server };
        let db = rows(&moving.home.database());
        db.execute_batch("BEGIN").unwrap();
        for number in 0..1_200 {
            add_rows(&db, &format!("c{number}"), "shop", "");
        }
        db.execute_batch("COMMIT").unwrap();
        Some(moving)
    }

    fn other(&self, there: &Store) -> Store {
        if *there == self.server { Store::File(self.home.database_file()) } else { self.server.clone() }
    }

    /// The one store that the home can use, once whoever opens it has done what was left; and it
    /// holds everything.
    #[track_caller]
    fn usable(&self, when: &str) -> Store {
        let home = self.home.looked_at_anew();
        take_up(&home).unwrap();
        let store = home.looked_at_anew().database();
        start(&store).unwrap_or_else(|error| panic!("{when}: {error}"));
        let counts = Reader::open(&store).unwrap().counts().unwrap();
        assert_eq!(counts.credentials, 1_200, "{when}");
        let other = self.other(&store);
        // Where no file is, no store is.
        if other.exists() {
            let refused = start(&other);
            assert!(
                matches!(refused, Err(DbError::Moved { .. } | DbError::Unfinished { .. })),
                "{when}: {refused:?}"
            );
        }
        store
    }
}

fn start(store: &Store) -> Result<(), DbError> {
    let folder = tempfile::tempdir().unwrap();
    let (writer, thread) = Writer::start(store, HomeLock::acquire(&folder.path().join("lock")).unwrap())?;
    drop(writer);
    thread.join();
    Ok(())
}

fn rows(store: &Store) -> crate::db::sql::Connection {
    start(store).unwrap();
    crate::db::scratch::connection(store)
}

/// Moves, and dies at the n-th step. None: it came to its end before.
fn cut(home: &Home, to: &Store, n: usize) -> Option<Step> {
    let (mut seen, mut last) = (0, None);
    let moved = catch_unwind(AssertUnwindSafe(|| {
        migrate(home, to, &mut |step| {
            last = Some(step);
            seen += 1;
            assert!(seen <= n, "cut");
        })
    }));
    match moved {
        Ok(moved) => {
            moved.unwrap();
            None
        }
        Err(_) => last,
    }
}

/// The home's store and the other one, after it came from there if it is the server.
fn beginning(at_the_server: bool) -> Option<(Moving, Store, Store)> {
    let moving = Moving::new()?;
    let (file, server) = (Store::File(moving.home.database_file()), moving.server.clone());
    if at_the_server {
        migrate(&moving.home.looked_at_anew(), &server, &mut |_| {}).unwrap();
        return Some((moving, server, file));
    }
    Some((moving, file, server))
}

#[test]
fn whatever_step_a_move_dies_at_one_store_is_usable_and_the_next_try_ends_it() {
    for at_the_server in [false, true] {
        let mut steps = Vec::new();
        for n in 0.. {
            let Some((moving, from, to)) = beginning(at_the_server) else { return };
            let Some(step) = cut(&moving.home.looked_at_anew(), &to, n) else { break };
            let when = format!("{step:?}, step {n} from {from:?}");
            let is_over = matches!(step, Step::Retired | Step::Opened | Step::Named);
            let usable = moving.usable(&when);
            assert_eq!(usable, if is_over { to.clone() } else { from.clone() }, "{when}");
            let again = migrate(&moving.home.looked_at_anew(), &to, &mut |_| {}).unwrap();
            assert_eq!(matches!(again, Moved::Copied { .. }), !is_over, "{when}: {again:?}");
            assert_eq!(moving.usable(&format!("{when}, again")), to);
            if at_the_server {
                assert_eq!(fs::read_to_string(moving.home.config()).unwrap(), TEMPLATE);
            }
            steps.push(step);
        }
        assert!(
            steps.len() > 10 && steps.contains(&Step::Whole) && steps.contains(&Step::Named),
            "{steps:?}"
        );
    }
}

#[test]
fn the_command_itself_ends_a_move_that_died_after_the_old_store_was_retired() {
    let Some(moving) = Moving::new() else { return };
    let home = moving.home.looked_at_anew();
    let mut at = 0;
    while cut(&home, &moving.server, at) != Some(Step::Retired) {
        at += 1;
    }
    let again = migrate(&moving.home.looked_at_anew(), &moving.server, &mut |_| {}).unwrap();
    assert!(matches!(again, Moved::Finished { .. }), "{again:?}");
    let already = migrate(&moving.home.looked_at_anew(), &moving.server, &mut |_| {}).unwrap();
    assert!(matches!(already, Moved::Already { .. }), "{already:?}");
    assert_eq!(moving.usable("in the end"), moving.server);
}

#[test]
fn an_operator_who_names_the_old_store_again_is_refused_and_config_stays_as_it_was_written() {
    let Some(moving) = Moving::new() else { return };
    migrate(&moving.home.looked_at_anew(), &moving.server, &mut |_| {}).unwrap();
    fs::write(moving.home.config(), TEMPLATE).unwrap();
    assert!(!take_up(&moving.home.looked_at_anew()).unwrap());
    assert!(matches!(start(&moving.home.looked_at_anew().database()), Err(DbError::Moved { .. })));
    assert_eq!(fs::read_to_string(moving.home.config()).unwrap(), TEMPLATE);
}

#[test]
fn nothing_is_begun_while_a_daemon_has_the_home_or_config_cannot_be_written() {
    let Some(moving) = Moving::new() else { return };
    let lock = HomeLock::acquire(&moving.home.lock()).unwrap();
    let refused = migrate(&moving.home, &moving.server, &mut |_| {});
    assert!(matches!(refused, Err(MovingError::Running { .. })), "{refused:?}");
    drop(lock);
    fs::write(moving.home.config(), "store = { url = 'postgres://a@b/c' }").unwrap();
    let refused = migrate(&moving.home, &moving.server, &mut |_| panic!("it was begun"));
    assert!(matches!(refused, Err(MovingError::Unwritten { .. })), "{refused:?}");
}
