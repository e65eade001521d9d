//! What a process may take of the machine's memory, where control groups limit it.

use std::path::{Path, PathBuf};

/// The two kinds of control groups, and where each tells what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    V1,
    V2,
}

/// The least that any of this process's control groups, its own and those around it, leaves; `None`
/// where none has a limit. What the system only caches of files is left, too: it gives way.
///
/// `read` reads a file, or says that there is none.
pub fn left_by_groups(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let own = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let folders = folders(&own, &mounts).into_iter();
    folders.filter_map(|(kind, folder)| left_by(kind, &|file| read(&folder.join(file)))).min()
}

/// What one control group leaves.
fn left_by(kind: Kind, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limits, used, caches): (&[&str], _, _) = match kind {
        Kind::V1 => (
            &["memory.limit_in_bytes"],
            "memory.usage_in_bytes",
            ["total_inactive_file", "total_active_file", ""],
        ),
        Kind::V2 => (
            &["memory.max", "memory.high"],
            "memory.current",
            ["inactive_file", "active_file", "slab_reclaimable"],
        ),
    };
    // "max" is no number, and version 1's "none" is the largest multiple of a page.
    let limits = limits.iter().filter_map(|file| number(file));
    let limit = limits.filter(|limit| *limit < 1 << 60).min()?;
    let stat = read("memory.stat").unwrap_or_default();
    let entries = stat.lines().filter_map(|line| line.split_once(' '));
    let caches = entries.filter(|(name, _)| caches.contains(name));
    let cached: u64 = caches.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum();
    Some(limit.saturating_sub(number(used)?.saturating_sub(cached)))
}

/// The folders of this process's control groups that may limit memory, from its own to the outermost that
/// is seen from here. `own` is /proc/self/cgroup, `mounts` /proc/self/mountinfo.
fn folders(own: &str, mounts: &str) -> Vec<(Kind, PathBuf)> {
    let mut folders = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let kind = match controllers {
            "" => Kind::V2,
            several if several.split(',').any(|name| name == "memory") => Kind::V1,
            _ => continue,
        };
        for (root, point) in mounts.lines().filter_map(|line| mount(line, kind)) {
            // A group outside of what is mounted is seen as its root.
            let inside = Path::new(group).strip_prefix(&root).unwrap_or(Path::new(""));
            let groups = inside.ancestors().map(|group| (kind, point.join(group)));
            folders.extend(groups);
        }
    }
    folders
}

/// What is mounted of the groups' tree, and where, if this line of mountinfo is of such a mount.
fn mount(line: &str, kind: Kind) -> Option<(PathBuf, PathBuf)> {
    let (mount, system) = line.split_once(" - ")?;
    let (mut mount, mut system) = (mount.split(' ').skip(3), system.split(' '));
    let is_it = match (kind, system.next()?) {
        (Kind::V1, "cgroup") => system.nth(1)?.split(',').any(|option| option == "memory"),
        (Kind::V2, "cgroup2") => true,
        _ => false,
    };
    is_it.then_some((unescaped(mount.next()?), unescaped(mount.next()?)))
}

/// As the kernel writes paths: blanks and the like are `\` and three octal digits.
fn unescaped(path: &str) -> PathBuf {
    let mut parts = path.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => text = text + &char::from(byte).to_string() + &part[3..],
            None => text = text + "\\" + part,
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left where there are these files.
    fn left(files: &[(&str, &str)]) -> Option<u64> {
        left_by_groups(&|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(found.1.to_owned())
        })
    }

    const V2: [(&str, &str); 2] = [
        ("/proc/self/cgroup", "0::/user.slice/job/step\n"),
        (
            "/proc/self/mountinfo",
            "24 30 0:22 / /proc rw - proc proc rw\n\
             35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        ),
    ];

    #[test]
    fn the_tightest_of_nested_groups_counts() {
        let own = "/sys/fs/cgroup/user.slice/job/step";
        let outer = "/sys/fs/cgroup/user.slice";
        let at = |folder: &str, file: &str| format!("{folder}/{file}");
        let (max, current) = (at(own, "memory.max"), at(own, "memory.current"));
        let (outer_max, outer_current) = (at(outer, "memory.max"), at(outer, "memory.current"));
        let mut files = V2.to_vec();
        assert_eq!(left(&files), None, "no limit");
        files.extend([(&*max, "max\n"), (&*current, "700\n")]);
        assert_eq!(left(&files), None, "no limit");
        files.extend([(&*outer_max, "1000\n"), (&*outer_current, "900\n")]);
        assert_eq!(left(&files), Some(100), "the outer group's");
        files[2] = (&max, "750\n");
        assert_eq!(left(&files), Some(50), "the own group's");
        let high = at(own, "memory.high");
        files.push((&high, "720\n"));
        assert_eq!(left(&files), Some(20), "above it the group is held back");
        files[3] = (&current, "800\n");
        assert_eq!(left(&files), Some(0), "more than it may");
    }

    #[test]
    fn what_only_caches_files_is_left() {
        let stat = "anon 300\nfile 650\nshmem 50\ninactive_file 500\nactive_file 100\n\
                    slab_reclaimable 30\nslab_unreclaimable 20\n";
        let mut files = V2.to_vec();
        files.extend([
            ("/sys/fs/cgroup/user.slice/job/memory.max", "1000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.current", "1000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.stat", stat),
        ]);
        assert_eq!(left(&files), Some(630));
    }

    #[test]
    fn version_1_has_other_names_and_mounts_for_each_controller() {
        let mounts = "36 30 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      37 30 0:32 /docker/abc /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n\
                      38 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let folder = "/sys/fs/cgroup/my memory";
        let at = |file: &str| format!("{folder}/{file}");
        let [limit, used, stat] =
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"].map(at);
        for group in ["/docker/abc", "/docker/abc/inner", "/elsewhere"] {
            let own = format!("5:cpu,cpuacct:{group}\n4:memory:{group}\n1:name=systemd:/\n0::/\n");
            let mut files = vec![
                ("/proc/self/cgroup", &*own),
                ("/proc/self/mountinfo", mounts),
                (&limit, "5000\n"),
                (&used, "4500\n"),
                (
                    &stat,
                    "cache 400\ninactive_file 1\ntotal_inactive_file 300\ntotal_active_file 50\n",
                ),
            ];
            assert_eq!(left(&files), Some(850), "{group}");
            files[2].1 = "9223372036854771712\n";
            assert_eq!(left(&files), None, "{group}");
        }
    }

    #[test]
    fn texts_that_make_no_sense_are_no_limits() {
        for own in ["", "\n", "0", "0:", "0::", ":::::", "0::/../..\n", "0::relative"] {
            for mounts in ["", " - ", "a b c - cgroup2", "1 2 3 / - cgroup2 x", V2[1].1] {
                let files = [("/proc/self/cgroup", own), ("/proc/self/mountinfo", mounts)];
                assert_eq!(left(&files), None);
            }
        }
    }
}
