//! A workspace of its own for the xtask, with git, in which cargo "builds" the binary
//! that the test gives it. What comes after the build is real. (`tour` builds for real.)

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::place::Place;

/// As with the real one, builds in a folder go one by one, and a binary is replaced whole.
const CARGO: &str = r#"#!/bin/sh
set -eu
root=${0%/*}
mkdir -p "$root/target/release"
exec 9>"$root/target/lock"
flock 9
while [ -e "$root/target/hold" ]; do sleep 0.05; done
cp -p "$root/binary" "$root/target/new"
mv "$root/target/new" "$root/target/release/app"
"#;

pub struct Workspace {
    /// Where things are deployed to.
    pub place: Place,
    pub root: PathBuf,
}

/// How a command ended, and what it said to people and to programs.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub people: String,
    pub programs: String,
}

impl Workspace {
    pub fn new(name: &str) -> Workspace {
        let place = Place::new(name);
        let root = place.path("workspace");
        Workspace::in_dir(place, &root)
    }

    pub fn in_dir(place: Place, root: &Path) -> Workspace {
        fs::create_dir_all(root.join("xtask")).unwrap();
        fs::write(root.join(".gitignore"), "/target\n/cargo\n/binary\n").unwrap();
        fs::write(root.join("cargo"), CARGO).unwrap();
        fs::set_permissions(root.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        let workspace = Workspace {
            place,
            root: root.to_owned(),
        };
        workspace.git(&["init", "--quiet"]);
        workspace.commit();
        workspace
    }

    pub fn git(&self, args: &[&str]) {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"];
        let git = Command::new("git")
            .current_dir(&self.root)
            .args(identity)
            .args(args)
            .status();
        assert!(git.unwrap().success(), "git {args:?}");
    }

    pub fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&[
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            "a commit",
        ]);
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .args(args)
            .current_dir(&self.root)
            .env("CARGO_MANIFEST_DIR", self.root.join("xtask"))
            .env("CARGO", self.root.join("cargo"));
        command
    }

    /// The command with the place as its target.
    pub fn xtask(&self, command: &str, args: &[&str]) -> Said {
        let target = self.place.dir.to_str().unwrap();
        said(&mut self.command(&[&[command, target], args].concat()))
    }

    pub fn deploy(&self, binary: &[u8]) -> Said {
        fs::write(self.root.join("binary"), binary).unwrap();
        self.xtask("deploy", &["--listen", &self.place.address.to_string()])
    }
}

pub fn said(command: &mut Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Said {
        code: status.code().expect("it was not killed"),
        people: String::from_utf8(stderr).unwrap(),
        programs: String::from_utf8(stdout).unwrap(),
    }
}

impl Said {
    pub fn succeeds(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.programs
    }

    pub fn ends_as_wrong_usage(self, word: &str) {
        assert_eq!((self.code, self.programs.as_str()), (2, ""), "{self:?}");
        assert!(
            self.people.contains(word),
            "no {word:?} in: {}",
            self.people
        );
    }

    /// With these words in its message.
    pub fn fails(self, words: &[&str]) {
        assert_eq!((self.code, self.programs.as_str()), (1, ""), "{self:?}");
        for word in words {
            assert!(
                self.people.contains(word),
                "no {word:?} in: {}",
                self.people
            );
        }
    }
}

pub fn exists(file: &Path) -> bool {
    file.symlink_metadata().is_ok()
}
