//! The user of `--user`.

use std::ffi::CString;

use nix::{
    sys::prctl,
    unistd::{Gid, Uid, User, geteuid, getgrouplist, setgroups, setresgid, setresuid},
};

use super::{SandboxError, refused};

/// A user of this host, with all groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name of the user.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group id.
    pub gid: Gid,
    groups: Vec<Gid>,
}

impl Account {
    /// The user called `name`; `None` if this process already runs as that user.
    ///
    /// # Errors
    /// If there is no such user, or this process cannot switch to it.
    pub fn find(name: &str) -> Result<Option<Self>, SandboxError> {
        let failed = |cause| refused("look the user up", cause, "see `getent passwd`");
        let user = User::from_name(name)
            .map_err(failed)?
            .ok_or_else(|| SandboxError::NoSuchUser { name: name.to_owned() })?;
        let own = geteuid();
        if user.uid == own {
            return Ok(None);
        }
        if !own.is_root() {
            return Err(SandboxError::NotRoot { name: name.to_owned(), user: own.as_raw() });
        }
        let of = CString::new(name).map_err(|_| SandboxError::NoSuchUser { name: name.to_owned() })?;
        let groups = getgrouplist(&of, user.gid).map_err(failed)?;
        Ok(Some(Self { name: user.name, uid: user.uid, gid: user.gid, groups }))
    }

    /// Switches to the user, with the currently permitted capabilities.
    pub(super) fn assume(&self) -> Result<(), SandboxError> {
        setgroups(&self.groups)
            .and_then(|()| setresgid(self.gid, self.gid, self.gid))
            .and_then(|()| prctl::set_keepcaps(true))
            .and_then(|()| setresuid(self.uid, self.uid, self.uid))
            .and_then(|()| prctl::set_keepcaps(false))
            .map_err(|errno| {
                refused(
                    "switch to another user",
                    errno,
                    "it takes CAP_SETUID and CAP_SETGID, or run without --user",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_those_of_this_host() {
        let own = User::from_uid(geteuid()).unwrap().unwrap();
        assert_eq!(Account::find(&own.name).unwrap(), None);
        let error = Account::find("nobody-has-this").unwrap_err().to_string();
        assert!(error.contains("useradd --system"), "{error}");
    }
}
