//! Directories that are not opened, and what is said about them.

use std::fs;

use super::*;

/// A store with one row in it, closed.
fn store(engine: Engine) -> Place {
    let mut place = Place::new(engine);
    place.kv().apply(&[put("key", filler(1, 10_000))]).unwrap();
    place.kv().flush().unwrap();
    place.close();
    place
}

#[test]
fn an_open_store_is_not_opened_again() {
    for engine in [SLED, FJALL] {
        let mut place = Place::new(engine);
        let error = refusal(engine, place.path());
        assert!(matches!(error, KvError::InUse { .. }), "{error:?}");
        place.close();
        place.reopen();
    }
}

#[test]
fn a_store_is_opened_by_its_own_engine_only() {
    for (made, opened) in [(SLED, FJALL), (FJALL, SLED)] {
        let mut place = store(made);
        let error = refusal(opened, place.path());
        let KvError::OtherEngine { found, wanted, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((found.as_str(), *wanted), (made.name(), opened.name()));
        assert!(
            error
                .to_string()
                .contains(&format!("set the engine to {}", made.name()))
        );
        place.reopen();
        assert_eq!(all_rows(place.kv()).len(), 1);
    }
}

#[test]
fn a_directory_with_anything_else_in_it_is_left_alone() {
    for (files, expected) in [
        (
            ["metadata/", "slabs/", "durability_cookie"],
            "a store of sled 1.0 alpha",
        ),
        (
            ["conf", "db", "blobs/"],
            "a store of sled 0.34 without a stamp",
        ),
        (
            ["version", "keyspaces/", "0.jnl"],
            "a store of fjall without a stamp",
        ),
        (
            ["holiday.jpg", "letters/", "zebra"],
            "other files (holiday.jpg, …)",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            if file.ends_with('/') {
                fs::create_dir(path)
            } else {
                fs::write(path, file)
            }
            .unwrap();
        }
        for engine in [SLED, FJALL] {
            let error = refusal(engine, directory.path());
            let KvError::NotAStore { found, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(found, expected);
        }
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, files.len(), "nothing was ours to remove or to add");
    }
}

#[test]
fn a_fresh_file_system_is_an_empty_directory() {
    for engine in [SLED, FJALL] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        open(engine, directory.path()).unwrap();
        assert!(directory.path().join("lost+found").exists());
    }
}

#[test]
fn a_store_of_a_later_version_is_left_alone() {
    let place = store(SLED);
    fs::write(place.path().join("engine"), "sled layout 2\n").unwrap();
    let error = refusal(SLED, place.path());
    assert!(
        error
            .to_string()
            .contains("a store of layout 2, and this server knows layout 1")
    );
}

#[test]
fn an_interrupted_creation_is_begun_again() {
    for (made, opened) in [(SLED, SLED), (FJALL, FJALL), (SLED, FJALL), (FJALL, SLED)] {
        let place = store(made);
        // As a crash may leave it: some files are there, and not whole.
        fs::write(
            place.path().join("engine"),
            format!("creating {} layout 1\n", made.name()),
        )
        .unwrap();
        for file in ["db", "conf", "version"] {
            if place.path().join(file).exists() {
                fs::write(place.path().join(file), "").unwrap();
            }
        }
        let kv = open(opened, place.path()).unwrap();
        assert_eq!(all_rows(&*kv), []);
        drop(kv);
        assert_eq!(
            fs::read_to_string(place.path().join("engine")).unwrap(),
            format!("{} layout 1\n", opened.name())
        );
    }
}

#[test]
fn a_store_without_its_files_is_damaged_and_not_empty() {
    for (engine, file) in [(SLED, "db"), (SLED, "conf"), (FJALL, "version")] {
        let place = store(engine);
        fs::remove_file(place.path().join(file)).unwrap();
        assert_damaged(&refusal(engine, place.path()));
        assert!(
            !place.path().join(file).exists(),
            "{file} was not made anew"
        );
    }
}

#[test]
fn damage_is_an_error_that_says_what_to_do() {
    // A snapshot that does not match its checksum; a tree that cannot be found.
    for (engine, part) in [(SLED, "snap."), (FJALL, "keyspaces/0/current")] {
        let mut place = store(engine);
        place.reopen();
        place.close();
        let (directory, name) = match part.rsplit_once('/') {
            Some((directory, name)) => (place.path().join(directory), name),
            None => (place.path().to_owned(), part),
        };
        let mut damaged = 0;
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(name)
            {
                let bytes = fs::read(&path).unwrap().len();
                fs::write(&path, filler(1, bytes)).unwrap();
                damaged += 1;
            }
        }
        assert!(damaged > 0, "{part} must be there to be damaged");
        assert_damaged(&refusal(engine, place.path()));
    }
}

#[test]
fn a_panic_while_opening_is_damage() {
    let error = crate::kv::without_panic::<()>(Path::new("somewhere"), || panic!("torn"));
    assert_damaged(&error.unwrap_err());
}

#[test]
fn a_snapshot_that_was_not_finished_is_removed() {
    let mut place = store(SLED);
    let unfinished = place.path().join("snap.00000000FFFFFFFF.generating");
    fs::write(&unfinished, "half a snap").unwrap();
    place.reopen();
    assert!(!unfinished.exists());
    assert_eq!(all_rows(place.kv()), [(b"key".to_vec(), filler(1, 10_000))]);
}

fn assert_damaged(error: &KvError) {
    assert!(matches!(error, KvError::Damaged { .. }), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("guildhall restore") && said.contains("guildhall compact"),
        "{said}"
    );
}
