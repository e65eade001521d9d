//! Which of several processes this is, as the launcher's environment variables have it.

use super::Secret;
use crate::error::{Error, Result};

/// Whose environment variables tell a process which of several it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Launcher {
    /// The first of the others whose variables are set
    Auto,
    /// torchrun, or a Kubernetes PyTorchJob: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    Torchrun,
    /// mpirun of Open MPI, MPICH or Intel MPI
    Mpi,
    /// srun
    Slurm,
    /// An indexed Kubernetes job: JOB_COMPLETION_INDEX, WORLD_SIZE, MASTER_ADDR
    Kubernetes,
}

/// A process among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessPlace {
    /// From 0 on, and of how many.
    pub process: usize,
    pub processes: usize,
    /// The number among those on its machine.
    pub local: usize,
    /// Machines, as far as the launcher says; else each process counts as one.
    pub machines: usize,
    /// Where the first process waits for the others, `host:port`.
    pub address: String,
    /// The launcher's name of the run, if it has one.
    pub run: String,
    /// What its processes show each other that no stranger has; else the name of the run.
    pub secret: Option<String>,
}

/// The variables of a launcher.
struct Names {
    launcher: Launcher,
    process: &'static str,
    /// The first that is set counts.
    processes: &'static [&'static str],
    local: &'static str,
    /// The number of processes on this machine, and that of machines.
    locals: &'static str,
    machines: &'static [&'static str],
    run: &'static [&'static str],
}

/// In the order in which `auto` looks for them: shells inside of an allocation have Slurm's, too.
const LAUNCHERS: [Names; 5] = [
    Names {
        launcher: Launcher::Torchrun,
        process: "RANK",
        processes: &["WORLD_SIZE"],
        local: "LOCAL_RANK",
        locals: "LOCAL_WORLD_SIZE",
        machines: &[],
        run: &["TORCHELASTIC_RUN_ID"],
    },
    Names {
        launcher: Launcher::Mpi,
        process: "OMPI_COMM_WORLD_RANK",
        processes: &["OMPI_COMM_WORLD_SIZE"],
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
        locals: "OMPI_COMM_WORLD_LOCAL_SIZE",
        machines: &[],
        run: &["PMIX_NAMESPACE"],
    },
    Names {
        launcher: Launcher::Mpi,
        process: "PMI_RANK",
        processes: &["PMI_SIZE"],
        local: "MPI_LOCALRANKID",
        locals: "MPI_LOCALNRANKS",
        machines: &[],
        run: &[],
    },
    Names {
        launcher: Launcher::Slurm,
        process: "SLURM_PROCID",
        processes: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: "SLURM_LOCALID",
        locals: "",
        machines: &["SLURM_STEP_NUM_NODES", "SLURM_NNODES"],
        run: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    },
    Names {
        launcher: Launcher::Kubernetes,
        process: "JOB_COMPLETION_INDEX",
        processes: &["WORLD_SIZE"],
        local: "LOCAL_RANK",
        locals: "",
        machines: &[],
        run: &[],
    },
];

/// Where no launcher says otherwise.
const PORT: u16 = 29501;

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl ProcessPlace {
    /// What shows the processes of the run to each other.
    pub(crate) fn secret(&self) -> Secret {
        Secret::new(self.secret.as_ref().unwrap_or(&self.run).as_bytes())
    }

    /// Which of several processes this is, as `launcher` has set `variable`s; none if it is the only one.
    /// `rendezvous`: where the first process waits, if not where the launcher says.
    ///
    /// # Errors
    /// Variables that are missing or make no sense.
    pub fn of(
        launcher: Launcher,
        rendezvous: Option<&str>,
        variable: Variables<'_>,
    ) -> Result<Option<Self>> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let place = place_in(launcher, rendezvous, &variable)?;
        Ok((place.processes > 1).then_some(place))
    }
}

fn place_in(
    launcher: Launcher,
    rendezvous: Option<&str>,
    variable: Variables<'_>,
) -> Result<ProcessPlace> {
    let suits = |names: &&Names| match launcher {
        Launcher::Auto => variable(names.process).is_some(),
        other => other == names.launcher && variable(names.process).is_some(),
    };
    let Some(names) = LAUNCHERS.iter().find(suits) else {
        let known = LAUNCHERS
            .iter()
            .filter(|names| launcher == Launcher::Auto || launcher == names.launcher);
        let known: Vec<_> = known.map(|names| names.process).collect();
        return Err(Error::usage(format!(
            "`join`: no launcher has started this process: {} is not set",
            known.join(" or ")
        )));
    };
    let number = |name: &str, text: String| {
        text.parse::<usize>()
            .map_err(|_| Error::usage(format!("`join`: {name}={text} is not a number")))
    };
    let process = number(names.process, variable(names.process).unwrap_or_default())?;
    let processes = names.processes.iter().find_map(|name| Some((name, variable(name)?)));
    let Some((name, text)) = processes else {
        return Err(Error::usage(format!(
            "`join`: {} is set, but {} is not: the number of processes is needed",
            names.process,
            names.processes.join(" or ")
        )));
    };
    let processes = number(name, text)?;
    if process >= processes {
        return Err(Error::usage(format!(
            "`join`: {}={process} is not below {name}={processes}",
            names.process
        )));
    }
    let local = match variable(names.local) {
        None => 0,
        Some(text) => number(names.local, text)?,
    };
    let locals = variable(names.locals).map(|text| number(names.locals, text)).transpose()?;
    let all_here = locals == Some(processes);
    let machines = match names.machines.iter().find_map(|name| Some((name, variable(name)?))) {
        Some((name, text)) => number(name, text)?,
        None => processes / locals.unwrap_or(1).max(1),
    };
    let address = match rendezvous {
        Some(address) => address.to_owned(),
        None if processes == 1 => String::new(),
        None => address(names, all_here, variable)?,
    };
    let run: Vec<_> = names.run.iter().filter_map(|name| variable(name)).collect();
    let run = run.join(".");
    Ok(ProcessPlace { process, processes, local, machines, address, run, secret: None })
}

/// Where the first process is, and the port beside the one that torchrun has taken itself.
fn address(names: &Names, all_here: bool, variable: Variables<'_>) -> Result<String> {
    let port = match variable("MASTER_PORT") {
        Some(text) => match text.parse::<u16>().ok().and_then(|port| port.checked_add(1)) {
            Some(port) => port,
            None => {
                return Err(Error::usage(format!("`join`: MASTER_PORT={text} is not below 65535")));
            }
        },
        None if names.launcher == Launcher::Torchrun => {
            return Err(missing(names, "MASTER_PORT"));
        }
        None => PORT,
    };
    let nodes = || variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_NODELIST"));
    let host = match variable("MASTER_ADDR") {
        Some(host) => host,
        None if names.launcher == Launcher::Slurm => match nodes().as_deref().map(first_node) {
            Some(host) => host,
            None => return Err(missing(names, "SLURM_STEP_NODELIST")),
        },
        None if all_here => "127.0.0.1".to_owned(),
        None => return Err(missing(names, "MASTER_ADDR")),
    };
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn missing(names: &Names, name: &str) -> Error {
    Error::usage(format!(
        "`join`: {} is set, but {name} is not: process 0's address is needed, there or by `rendezvous`",
        names.process
    ))
}

/// The first of Slurm's list of nodes, as in `gpu[07-09,12],login`.
fn first_node(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(numbers) = rest.strip_prefix('[') else { return name.to_owned() };
    let numbers = numbers.split([',', '-', ']']).next().unwrap_or_default();
    let after = rest.split_once(']').map_or("", |(_, after)| after.split(',').next().unwrap_or(""));
    format!("{name}{numbers}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(launcher: Launcher, variables: &[(&str, &str)]) -> Result<ProcessPlace> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        place_in(launcher, None, &variable)
    }

    #[test]
    fn every_launcher_is_understood() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RUN_ID", "x"),
        ];
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node1"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "9"),
        ];
        let mpich = [("PMI_RANK", "3"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1")];
        let mpich = [&mpich[..], &[("MPI_LOCALNRANKS", "4")]].concat();
        let srun = [
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-09,12],login"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NNODES", "2"),
        ];
        let job = [("JOB_COMPLETION_INDEX", "3"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "::1")];
        for (variables, local, machines, address, run) in [
            (&torchrun[..], 1, 2, "node1:29501", "x"),
            (&open_mpi, 1, 4, "node1:29501", ""),
            (&mpich, 1, 1, "127.0.0.1:29501", ""),
            (&srun, 1, 2, "gpu07:29501", "77.0"),
            (&job, 0, 4, "[::1]:29501", ""),
        ] {
            let (address, run) = (address.to_owned(), run.to_owned());
            let secret = None;
            let place =
                ProcessPlace { process: 3, processes: 4, local, machines, address, run, secret };
            assert_eq!(asked(Launcher::Auto, variables), Ok(place));
        }
        assert_eq!(asked(Launcher::Slurm, &open_mpi).unwrap().processes, 9);
    }

    #[test]
    fn a_partial_set_of_variables_is_told_by_name() {
        let told = |variables: &[_], word: &str| {
            let error = asked(Launcher::Auto, variables).unwrap_err();
            assert!(error.to_string().contains(word) && error.exit_status() == 2, "{error}");
        };
        told(&[], "RANK or OMPI_COMM_WORLD_RANK");
        told(&[("RANK", "1")], "WORLD_SIZE is not");
        told(&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK=one");
        told(&[("RANK", "2"), ("WORLD_SIZE", "2")], "not below WORLD_SIZE=2");
        told(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")], "MASTER_PORT is not");
        told(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "65535")], "MASTER_PORT=65535");
        told(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")], "MASTER_ADDR is not");
        told(&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")], "SLURM_STEP_NODELIST is not");
    }

    #[test]
    fn the_first_node_of_a_list() {
        for (list, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("n[3,5]", "n3"),
            ("n[01-04]-ib,x", "n01-ib"),
            ("a,n[1-2]", "a"),
        ] {
            assert_eq!(first_node(list), first);
        }
    }
}
