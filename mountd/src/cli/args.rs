//! What the program can be told.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use netfs_common::class::Class;
use netfs_common::id::ServerId;

/// netfs: a network file system that ordinary programs use like a local disk.
#[derive(Debug, Parser)]
#[command(
    name = "netfs",
    version,
    arg_required_else_help = true,
    after_help = "\
First steps, on one machine and without any configuration:
  mkdir -p /tmp/netfs && netfs dev /tmp/netfs     server and mount in one process; Ctrl-C stops it
  netfs status                                    what is mounted, and how it does
  netfs why PATH                                  what a file that takes long waits for

With a server of your own:
  netfs pki init CLUSTER_DIR                      the certificates of a new cluster
  netfs mount files.example.org/home /mnt/home    a volume of a server
  netfs umount /mnt/home"
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Mount(MountArgs),
    Dev(DevArgs),
    Umount(UmountArgs),
    Status(StatusArgs),
    /// Show who holds leases on a file or directory, and who waits for them; of a mount point, how many there are.
    ///
    /// Asks the daemon, never the mount: it answers even when the mount hangs.
    Leases(InsightArgs),
    /// Show why a file or directory takes long: who holds what, who waits for whom, the last operations on it and where their
    /// time went.
    ///
    /// Asks the daemon, never the mount: it answers even when the mount hangs.
    Why(InsightArgs),
    /// Print every setting of the client, with what it means and its default, as a configuration file for --config
    Config,
    /// List, add, drain and remove the data servers of a cluster.
    #[command(subcommand)]
    Data(DataCommand),
    Check(CheckArgs),
    Set(SetArgs),
    /// Make and show the certificates by which servers and clients know each other.
    #[command(subcommand)]
    Pki(PkiCommand),
}

/// Where the client's certificate comes from.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct IdentityArgs {
    /// Directory with the client's ca.pem, cert.pem and key.pem [default: /etc/netfs/tls, or
    /// ~/.config/netfs/tls for users other than root]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ca", "cert", "key"])]
    pub(super) identity: Option<PathBuf>,
    /// The cluster's authority, with --cert and --key in place of --identity
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The client's certificate
    #[arg(long, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// The client's private key, readable by its owner only
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
}

/// Mount a volume of a server.
///
/// Returns when the mount answers, and goes on in the background. A failure is one line and exit
/// code 1, and nothing stays mounted.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = super::options::HELP)]
pub(super) struct MountArgs {
    /// What to mount: SERVER[:PORT]/VOLUME, for example files.example.org/home or [::1]:7400/home; the port is 7400
    /// unless said otherwise
    #[arg(value_name = "SERVER[:PORT]/VOLUME")]
    pub(super) source: String,
    /// An empty directory
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) target: PathBuf,
    /// Mount options, separated by commas; may be repeated
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Stay in the foreground and log to standard error; Ctrl-C unmounts
    #[arg(long, short = 'f')]
    pub(super) foreground: bool,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    /// Settings of the client, a TOML file [default: /etc/netfs/client.toml if it exists]; `netfs config` explains them
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where the background process logs [default: /var/log/netfs/MOUNTPOINT.log, or below
    /// ~/.local/state/netfs for users other than root]
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// The background half of this command, which reports on standard output
    #[arg(long, hide = true)]
    pub(super) daemonised: bool,
}

/// Try netfs on this machine alone: servers and mount in one process.
///
/// Starts a metadata and a data server on the loopback interface and mounts their volume. The first
/// start makes certificates and an empty volume in the state directory; later ones find everything
/// as it was left. Ctrl-C (or SIGTERM) unmounts, stores everything and stops.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = super::options::HELP)]
pub(super) struct DevArgs {
    /// An empty directory
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) target: PathBuf,
    /// Where everything is kept [default: ~/.local/share/netfs/dev, or /var/lib/netfs/dev for root]
    #[arg(long, value_name = "STATE")]
    pub(super) dir: Option<PathBuf>,
    /// Mount options, separated by commas; may be repeated
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Settings of the client, a TOML file
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Stay in the foreground; this is how it always runs
    #[arg(long, short = 'f')]
    pub(super) foreground: bool,
}

/// Unmount a volume, and wait until everything that was written is stored.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// The mount point
    #[arg(value_name = "MOUNTPOINT")]
    pub(super) target: PathBuf,
    /// Unmount even if the server cannot be reached or the mount is in use: what is not stored is
    /// given up, and programs that use the mount get errors
    #[arg(long, short = 'f')]
    pub(super) force: bool,
    /// Detach it now, even if it is in use, and end it when nobody uses it any more; also cleans up
    /// a mount whose daemon has died
    #[arg(long, short = 'l')]
    pub(super) lazy: bool,
}

/// Show what is mounted and how it does, or how a server does.
///
/// Asks the daemons, never the mounts: it answers even when a mount hangs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// A mount point [default: all mounts of this user]
    #[arg(value_name = "MOUNTPOINT", conflicts_with = "server")]
    pub(super) target: Option<PathBuf>,
    /// A server, as SERVER[:PORT]
    #[arg(long, value_name = "SERVER[:PORT]")]
    pub(super) server: Option<String>,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct InsightArgs {
    /// A path on a mount
    #[arg(value_name = "PATH")]
    pub(super) path: PathBuf,
    /// An inode of that mount, in place of the path
    #[arg(long, value_name = "NUMBER")]
    pub(super) inode: Option<u64>,
}

/// Say how many replicas what is made in a directory from now on gets.
///
/// Files and directories that are made in it inherit this, those that are there keep what they have: copy a file to give it
/// another number. `getfattr -n netfs.replicas PATH` shows it. Only the directory's owner and root may set it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SetArgs {
    /// A directory on a mount
    #[arg(value_name = "DIRECTORY")]
    pub(super) directory: PathBuf,
    /// 1 to 5, or "default": as many as the volume says
    #[arg(long, value_name = "N", value_parser = super::set::parse)]
    pub(super) replicas: Class,
}

/// Which cluster, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ClusterArgs {
    /// The metadata server
    #[arg(long, value_name = "SERVER[:PORT]", default_value = "localhost")]
    pub(super) server: String,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
}

/// Compare the metadata of a cluster with what its data servers have, and mend differences, while everybody goes on working.
///
/// Exit status 0: nothing is wrong; 1: something was found, and all of it is mended (or would be, with --dry-run); 2: something could not
/// be compared or mended. Needs a certificate of a server: `--identity /etc/netfs/tls` on a server.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Compare with the data servers; there is nothing else to choose yet
    #[arg(long, required = true)]
    pub(super) data: bool,
    /// Only say what is found
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) of: ClusterArgs,
}

/// The data servers of a cluster.
///
/// Everybody may list them. Changes need a certificate of a server: `--identity /etc/netfs/tls` on a server.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Show all data servers, what they have and how they do
    List {
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Add a data server, which then gets its share of the data; or take one back that is being drained
    Add {
        /// Where clients and servers reach it; several addresses of the same server are separated by commas
        #[arg(value_name = "HOST:PORT[,HOST:PORT]")]
        addresses: String,
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Move what a data server has to the others
    Drain {
        /// Its number in the list
        #[arg(value_parser = super::data::parse_id)]
        id: ServerId,
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Forget a data server that has nothing any more
    Remove {
        /// Its number in the list
        #[arg(value_parser = super::data::parse_id)]
        id: ServerId,
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Wait no more for a data server that is lost for good. What nobody else has is lost
    GiveUp {
        /// Its number in the list
        #[arg(value_parser = super::data::parse_id)]
        id: ServerId,
        /// The data server that goes on where nobody has everything [default: for each part of the data the one that was written last of those with at least half of the most]
        #[arg(long, value_name = "ID", value_parser = super::data::parse_id)]
        with: Option<ServerId>,
        /// That data is lost is meant so; without this it is only said how much
        #[arg(long)]
        yes_lose_data: bool,
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Divide the data by what the servers can hold now, and by how busy they were in the last minutes
    Rebalance {
        #[command(flatten)]
        of: ClusterArgs,
    },
    /// Change how many replicas the data of a volume has, but for directories that have a number of their own
    Replicas {
        /// The volume's name
        volume: String,
        /// How many, 1 to 5
        #[arg(value_name = "N")]
        replicas: u8,
        /// Writes wait while there are fewer than this [default: as before]
        #[arg(long, value_name = "M")]
        min: Option<u8>,
        /// Only of what is made in directories that were set to M replicas: these get N
        #[arg(long = "of", value_name = "M", value_parser = super::set::parse_number, conflicts_with = "min")]
        directories: Option<Class>,
        #[command(flatten)]
        of: ClusterArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make the authority of a new cluster.
    ///
    /// Keep the directory safe and offline: whoever has ca-key.pem can join the cluster.
    Init {
        /// Where to put ca.pem and ca-key.pem; an authority that is there is never replaced
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A name for people
        #[arg(long, default_value = "netfs")]
        name: String,
    },
    /// Issue a certificate to a server or a client.
    Issue {
        /// The authority's directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Where to put ca.pem, cert.pem and key.pem
        #[arg(value_name = "OUT")]
        out: PathBuf,
        /// Issue it to the server of this name
        #[arg(
            long,
            value_name = "NAME",
            required_unless_present = "client",
            conflicts_with = "client"
        )]
        server: Option<String>,
        /// Issue it to the client of this name
        #[arg(long, value_name = "NAME")]
        client: Option<String>,
        /// A DNS name or address of the server, for clients that verify it; may be repeated
        #[arg(long = "dns", value_name = "NAME", requires = "server")]
        names: Vec<String>,
        /// Days until it expires
        #[arg(long, value_name = "DAYS", default_value_t = netfs_common::tls::pki::LEAF_VALIDITY_DAYS)]
        days: u32,
        /// Replace a certificate that is there
        #[arg(long)]
        overwrite: bool,
    },
    /// Show what a certificate says.
    Show {
        /// A PEM file, or a directory with ca.pem or cert.pem
        #[arg(value_name = "FILE")]
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_mount_as_mount_8_asks_for_it() {
        let args = Args::try_parse_from([
            "netfs",
            "mount",
            "host/vol",
            "/mnt",
            "-o",
            "ro,nosuid",
            "-o",
            "soft",
        ])
        .unwrap();
        let Command::Mount(m) = args.command else { panic!("not a mount") };
        assert_eq!(m.options, ["ro,nosuid", "soft"]);
        assert!(!m.foreground);
    }

    #[test]
    fn a_certificate_is_named_in_one_way() {
        let both = ["netfs", "mount", "h/v", "/mnt", "--identity", "d", "--ca", "c", "--cert", "x"];
        assert!(Args::try_parse_from(both).is_err());
    }

    #[test]
    fn a_certificate_is_issued_to_somebody() {
        assert!(Args::try_parse_from(["netfs", "pki", "issue", "ca", "out"]).is_err());
        let both = ["netfs", "pki", "issue", "ca", "out", "--server", "a", "--client", "b"];
        assert!(Args::try_parse_from(both).is_err());
        let client = ["netfs", "pki", "issue", "ca", "out", "--client", "b"];
        assert!(Args::try_parse_from(client).is_ok());
    }
}
