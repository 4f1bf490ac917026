# The file system exerciser fsx, as published. Needs base.sh and tools.sh. Sourced, never run.

FSX_VERSION=0.3.2

# fsx_tool: builds it once. Sets TOOL to its path.
fsx_tool() { crate_tool fsx "$FSX_VERSION"; }

# write_fsx_config FILE LENGTH MMAP PUNCH: relative frequencies. A mapped write is followed by msync, which a network file system pays
# for like fsync, and so does a cut, so these are rarer than plain writes; every run of some length still has many of each.
write_fsx_config() {
    cat >"$1" <<CONFIG
flen = $2

[opsize]
# The suite would call posix_fallocate with a length of zero, which is EINVAL everywhere, and count that as a failure.
min = 1
max = 65536

[weights]
close_open = 1
read = 10
write = 10
truncate = 3
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 1
mapread = $3
mapwrite = $(awk -v w="$3" 'BEGIN { print w / 10 }')
invalidate = $(awk -v w="$3" 'BEGIN { print w / 10 }')
punch_hole = $4
CONFIG
}
