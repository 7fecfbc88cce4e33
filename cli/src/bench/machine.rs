//! What a report says of the machine: facts that the system tells in files, as far as it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{json, Value};

/// Where the system tells of itself; another folder in tests.
#[derive(Clone, Copy)]
pub(super) struct System<'a>(pub(super) &'a Path);

impl System<'_> {
    /// The machine this is.
    pub(super) fn here() -> System<'static> {
        System(Path::new("/"))
    }

    fn text(self, path: &str) -> Option<String> {
        let bytes = fs::read(self.0.join(path)).ok()?;
        // Names in a device tree end with a 0.
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn number(self, path: &str) -> Option<f64> {
        self.text(path)?.parse().ok()
    }

    /// What stands behind a name and a colon in a file of such lines, the first time.
    fn field(self, path: &str, name: &str) -> Option<String> {
        let text = self.text(path)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Folders below `path` whose names begin with `name` and go on with a number, in its order.
    fn numbered(self, path: &str, name: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join(path)).into_iter().flatten();
        let mut found: Vec<(u32, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let number = entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(name)?
                    .parse()
                    .ok()?;
                Some((number, entry.path()))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// What does not change while something is measured.
    pub(super) fn facts(self) -> Value {
        let cpus = self.numbered("sys/devices/system/cpu", "cpu");
        let of_cpu = |cpu: &Path, file: &str| System(cpu).text(file);
        let mut cores: Vec<_> = cpus
            .iter()
            .filter_map(|cpu| {
                let package = of_cpu(cpu, "topology/physical_package_id")?;
                Some((package, of_cpu(cpu, "topology/core_id")?))
            })
            .collect();
        cores.sort();
        cores.dedup();
        let kib = |name| {
            let text = self.field("proc/meminfo", name)?;
            let kib: u64 = text.split(' ').next()?.parse().ok()?;
            Some(1024 * kib)
        };
        json!({
            // Of boards, which have no name of the CPU.
            "board": self.text("proc/device-tree/model"),
            "cpu": self.cpu(),
            "architecture": std::env::consts::ARCH,
            "cpus": cpus.len(),
            "cores": (!cores.is_empty()).then_some(cores.len()),
            "usable_threads": std::thread::available_parallelism().map_or(1, usize::from),
            "clock_max_mhz": self.clocks("cpufreq/cpuinfo_max_freq"),
            "governor": cpus.first().and_then(|cpu| of_cpu(cpu, "cpufreq/scaling_governor")),
            "memory_bytes": kib("MemTotal"),
            "page_bytes": self.page_bytes(),
            "kernel": self.text("proc/sys/kernel/osrelease"),
            "system": self.os_name(),
        })
    }

    /// Its name, or the numbers that ARM has for it.
    fn cpu(self) -> Option<String> {
        let field = |name| self.field("proc/cpuinfo", name);
        field("model name").or_else(|| {
            let (implementer, part) = (field("CPU implementer")?, field("CPU part")?);
            Some(format!("implementer {implementer}, part {part}"))
        })
    }

    fn page_bytes(self) -> Option<u64> {
        let text = self.field("proc/self/smaps", "KernelPageSize")?;
        let kib: u64 = text.split(' ').next()?.parse().ok()?;
        Some(1024 * kib)
    }

    fn os_name(self) -> Option<String> {
        let text = self.text("etc/os-release")?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches('"').to_owned())
    }

    /// A clock of each CPU, of files in kHz.
    fn clocks(self, file: &str) -> Option<Vec<f64>> {
        let cpus = self.numbered("sys/devices/system/cpu", "cpu");
        let clocks = cpus.iter().filter_map(|cpu| System(cpu).number(file));
        let clocks: Vec<f64> = clocks.map(|khz| khz / 1e3).collect();
        (!clocks.is_empty()).then_some(clocks)
    }

    /// Clocks of now where the kernel sets none.
    fn clocks_of_cpuinfo(self) -> Option<Vec<f64>> {
        let text = self.text("proc/cpuinfo")?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let clocks = lines.filter(|(key, _)| key.trim() == "cpu MHz");
        let clocks: Vec<f64> = clocks
            .filter_map(|(_, mhz)| mhz.trim().parse().ok())
            .collect();
        (!clocks.is_empty()).then_some(clocks)
    }

    /// What does: clocks, heat, and how often the machine has slowed down.
    pub(super) fn now(self) -> Value {
        let zones = self.numbered("sys/class/thermal", "thermal_zone");
        let zones = zones.iter().filter_map(|zone| {
            let name = System(zone).text("type").unwrap_or_default();
            Some((name, json!(System(zone).number("temp")? / 1e3)))
        });
        let temperatures: serde_json::Map<_, _> = zones.collect();
        let cpus = self.numbered("sys/devices/system/cpu", "cpu");
        let counts = cpus
            .iter()
            .filter_map(|cpu| System(cpu).number("thermal_throttle/core_throttle_count"));
        let counts: Vec<f64> = counts.collect();
        json!({
            "clock_mhz": self
                .clocks("cpufreq/scaling_cur_freq")
                .or_else(|| self.clocks_of_cpuinfo()),
            "temperature_c": (!temperatures.is_empty()).then_some(temperatures),
            "times_throttled": (!counts.is_empty()).then(|| counts.iter().sum::<f64>()),
            // A Raspberry Pi's own word: bits for low voltage and heat, now and since its start.
            "get_throttled": self.text("sys/devices/platform/soc/soc:firmware/get_throttled"),
            "load_1min": self.text("proc/loadavg").and_then(|text| {
                text.split(' ').next()?.parse::<f64>().ok()
            }),
        })
    }
}

/// Energy that the system counts, to be asked twice.
pub(super) struct Energy {
    /// Counters with what they said, in microjoules.
    counters: Vec<(PathBuf, f64)>,
    start: Instant,
}

impl Energy {
    pub(super) fn start(system: System<'_>) -> Self {
        let packages = system.numbered("sys/class/powercap", "intel-rapl:");
        let counters = packages.into_iter().filter_map(|package| {
            let joules = System(&package).number("energy_uj")?;
            Some((package, joules))
        });
        Energy {
            counters: counters.collect(),
            start: Instant::now(),
        }
    }

    /// Watts since then, as a mean; `None` where nothing is counted, or a counter began anew.
    pub(super) fn watts(&self) -> Option<f64> {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut joules = 0.0;
        for (package, before) in &self.counters {
            let used = System(package).number("energy_uj")? - before;
            joules += if used >= 0.0 { used / 1e6 } else { return None };
        }
        (!self.counters.is_empty() && seconds > 0.0).then_some(joules / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of a machine.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("within it")).expect("a folder");
            fs::write(path, text).expect("writable");
        }
        folder
    }

    #[test]
    fn a_board_tells_of_itself() {
        let cpu = "sys/devices/system/cpu";
        let files = [
            (
                "proc/device-tree/model",
                "Raspberry Pi 4 Model B Rev 1.4\0".to_owned(),
            ),
            (
                "proc/cpuinfo",
                "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n".into(),
            ),
            ("proc/meminfo", "MemTotal:        3884380 kB\n".into()),
            ("proc/sys/kernel/osrelease", "6.12.0-rpi\n".into()),
            (
                "etc/os-release",
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n".into(),
            ),
            (
                "sys/class/thermal/thermal_zone0/type",
                "cpu-thermal\n".into(),
            ),
            ("sys/class/thermal/thermal_zone0/temp", "61300\n".into()),
            (
                "sys/devices/platform/soc/soc:firmware/get_throttled",
                "50005\n".into(),
            ),
        ];
        let mut files: Vec<_> = files.map(|(path, text)| (path.to_owned(), text)).into();
        for n in 0..4 {
            files.push((format!("{cpu}/cpu{n}/topology/core_id"), n.to_string()));
            files.push((
                format!("{cpu}/cpu{n}/topology/physical_package_id"),
                "0".into(),
            ));
            files.push((
                format!("{cpu}/cpu{n}/cpufreq/cpuinfo_max_freq"),
                "1800000".into(),
            ));
            files.push((
                format!("{cpu}/cpu{n}/cpufreq/scaling_cur_freq"),
                "600000".into(),
            ));
        }
        files.push((
            format!("{cpu}/cpu0/cpufreq/scaling_governor"),
            "ondemand".into(),
        ));
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let folder = system(&files);
        let facts = System(folder.path()).facts();
        assert_eq!(facts["board"], "Raspberry Pi 4 Model B Rev 1.4");
        assert_eq!(facts["cpu"], "implementer 0x41, part 0xd08");
        assert_eq!((&facts["cpus"], &facts["cores"]), (&json!(4), &json!(4)));
        assert_eq!(
            facts["clock_max_mhz"],
            json!([1800.0, 1800.0, 1800.0, 1800.0])
        );
        assert_eq!(facts["memory_bytes"], 3_884_380 * 1024_u64);
        assert_eq!(facts["system"], "Debian GNU/Linux 13");
        assert_eq!(facts["governor"], "ondemand");
        let now = System(folder.path()).now();
        assert_eq!(now["clock_mhz"][0], 600.0);
        assert_eq!(now["temperature_c"]["cpu-thermal"], 61.3);
        assert_eq!(now["get_throttled"], "50005");
        assert!(now["times_throttled"].is_null());
    }

    #[test]
    fn what_is_not_told_is_null() {
        let folder = system(&[(
            "proc/cpuinfo",
            "model name : A CPU\ncpu MHz : 2400.5\ncpu MHz : 2000\n",
        )]);
        let system = System(folder.path());
        let facts = system.facts();
        assert_eq!(facts["cpu"], "A CPU");
        assert!(facts["kernel"].is_null() && facts["cores"].is_null());
        assert_eq!(system.now()["clock_mhz"], json!([2400.5, 2000.0]));
        assert!(Energy::start(system).watts().is_none());
    }

    #[test]
    fn energy_is_counted_over_all_packages() {
        let files = ["0", "1"].map(|n| format!("sys/class/powercap/intel-rapl:{n}/energy_uj"));
        let folder = system(&[(&files[0], "1000000"), (&files[1], "5000000")]);
        let energy = Energy::start(System(folder.path()));
        fs::write(folder.path().join(&files[0]), "3000000").expect("writable");
        assert!(energy.watts().is_some_and(|watts| watts > 0.0));
        fs::write(folder.path().join(&files[1]), "1").expect("writable");
        assert!(energy.watts().is_none(), "it began anew");
    }
}
