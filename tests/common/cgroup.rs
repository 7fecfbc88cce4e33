//! A control group with a memory limit, where this process may make one.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Limited(PathBuf);

impl Limited {
    /// A new group below this process's own, of the first or the second version; `None` where the system
    /// does not allow it.
    pub fn new(bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("rwkv-edge-test-{}", std::process::id());
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            let parent = Path::new(root).join(path.trim_start_matches('/'));
            let group = Limited(parent.join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), bytes.to_string()).ok()?;
            // Without it the group would use swap instead.
            let _ = fs::write(group.0.join("memory.swap.max"), "0");
            Some(group)
        })
    }

    /// The same command, in the group.
    pub fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        let join = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
        shell.args(["-c", join]).arg(&self.0);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // Empty once its processes have ended.
        let _ = fs::remove_dir(&self.0);
    }
}
