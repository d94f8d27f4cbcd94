//! A file system of our own that can lose its power: ext4 in a file, on a loop device. Needs root.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::writer::run;

/// A disk that goes away with its handle.
pub(crate) struct Disk {
    place: TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes a disk and mounts it.
    ///
    /// # Errors
    /// Why this machine cannot.
    pub(crate) fn new(bytes: u64) -> Result<Disk, String> {
        let place = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = Disk {
            place,
            mounted: false,
        };
        File::create(disk.image())
            .and_then(|image| image.set_len(bytes))
            .and_then(|()| std::fs::create_dir(disk.path()))
            .map_err(|error| error.to_string())?;
        run("xfs_io", &["-V"])?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&disk.image())])?;
        let mut disk = disk;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path().join("mounted")
    }

    fn image(&self) -> PathBuf {
        self.place.path().join("image")
    }

    fn mount(&mut self) -> Result<(), String> {
        run(
            "mount",
            &["-o", "loop", text(&self.image()), text(&self.path())],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts the power: what was written and not synced is gone, also the file system's journal.
    /// Nothing can be read or written until [`restart`](Disk::restart).
    pub(crate) fn cut_power(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.path())]).expect("the power can be cut");
    }

    /// Turns the power on again.
    pub(crate) fn restart(&mut self) {
        run("umount", &[text(&self.path())]).expect("nobody uses the disk any more");
        self.mounted = false;
        self.mount().expect("the disk can be mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // When a test has failed its writer may still be there.
            if let Err(error) = run("umount", &["--lazy", text(&self.path())]) {
                say(&error);
            }
        }
    }
}

/// A disk for a test, or word that the test is skipped.
pub(crate) fn disk_or_skip(test: &str, bytes: u64, required: bool) -> Option<Disk> {
    match Disk::new(bytes) {
        Ok(disk) => Some(disk),
        Err(error) if required => panic!("{test} cannot run here: {error}"),
        Err(error) => {
            say(&format!(
                "SKIPPED {test}: this needs root and loop devices ({error})"
            ));
            None
        }
    }
}

/// Past the harness, which keeps to itself what passing tests print.
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").expect("standard error is open");
}

fn text(path: &Path) -> &str {
    path.to_str()
        .expect("temporary directories have plain names")
}
