#!/bin/sh
# Installs the command rwkv-edge: finds out which of the released files this machine runs, fetches it, checks its sum,
# and puts it under a folder such as ~/.local. What fails leaves everything as it was. --help says how it is called.
# Needs curl or wget (not for a folder), tar and gzip, and sha256sum, shasum or openssl.
set -eu

place=https://github.com/rwkv-edge/rwkv-edge/releases/latest/download
glibc_needed=2.17
# What was installed, a file a line, and the folders that were made for it, which end in a slash: / is the prefix, //
# the folder that it lies in, and so on.
list=share/rwkv-edge/installed

say() { echo "install.sh: $*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }
help() {
    cat <<'TEXT'
usage: install.sh [--prefix DIR] [--from PLACE] [--machine KIND] [--dry-run]
       install.sh --uninstall [--prefix DIR]

    --prefix DIR     where bin and share are; /usr/local for root, ~/.local for others
    --from PLACE     address or folder of the released files; the latest release without it
    --machine KIND   x86_64-linux-gnu, x86_64-linux-static, aarch64-linux-gnu, aarch64-linux-static or
                     armv7-linux-gnu, for installing into another machine's files; this machine's own without it
    --dry-run        only says what would be installed
    --uninstall      removes what was installed there, and nothing else
    -h, --help       says this
TEXT
}
# usage WHAT: is wrong with how it was called.
usage() {
    { echo "install.sh: $*"; help; } >&2
    exit 2
}

# is_there FILE: links that lead nowhere are files, too.
is_there() { [ -e "$1" ] || [ -h "$1" ]; }

# The version of glibc, such as 2.36; nothing where the system has another C library.
glibc() {
    found=$(getconf GNU_LIBC_VERSION 2>/dev/null) || found=$(ldd --version 2>&1 | head -n 1) || found=
    case $found in
        glibc* | *GLIBC* | *"GNU libc"*) echo "$found" | sed -n 's/.* \([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' ;;
    esac
}

# has_glibc: whether it is new enough.
has_glibc() {
    version=$(glibc)
    [ -n "$version" ] || return 1
    major=${version%%.*} minor=${version#*.}
    [ "$major" -gt "${glibc_needed%.*}" ] ||
        { [ "$major" -eq "${glibc_needed%.*}" ] && [ "$minor" -ge "${glibc_needed#*.}" ]; }
}

# The kind of this machine, as released files call it.
kind_of_this() {
    [ "$(uname -s)" = Linux ] || fail "$(uname -s): only Linux has released files; build it from source with cargo"
    machine=$(uname -m)
    bits=$(getconf LONG_BIT 2>/dev/null) || bits=
    case $machine in
        x86_64 | amd64) machine=x86_64 ;;
        aarch64 | arm64) machine=aarch64 ;;
        armv7* | armv8l) machine=armv7 ;;
        *) fail "$machine: no released file is for this machine; build it from source with cargo" ;;
    esac
    # A system of 32 bits on a kernel of 64, such as Raspberry Pi OS has: its libraries are of no use.
    if [ "$machine" != armv7 ] && { [ "$bits" = 32 ] || ! has_glibc; }; then
        echo "$machine-linux-static"
        return
    fi
    has_glibc || fail "$machine: needs glibc $glibc_needed, and this system has ${version:-another C library}"
    echo "$machine-linux-gnu"
}

# fetch NAME FILE
fetch() {
    case $place in
        http://* | https://*)
            # Where https was asked for, it is https to the end, also where the server sends curl elsewhere.
            case $place in https://*) protocols='=https' ;; *) protocols='=http,https' ;; esac
            if command -v curl >/dev/null 2>&1; then
                curl -fsSL --proto "$protocols" --retry 3 -o "$2" "$place/$1" || fail "$place/$1: cannot be fetched"
            elif command -v wget >/dev/null 2>&1; then
                wget -q -O "$2" "$place/$1" || fail "$place/$1: cannot be fetched"
            else
                fail "needs curl or wget, or the released files in a folder: --from DIR"
            fi
            ;;
        *)
            [ -f "$place/$1" ] || fail "$place/$1: not there"
            cp "$place/$1" "$2" || fail "$place/$1: cannot be copied to $2"
            ;;
    esac
}

sum_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum < "$1"
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 < "$1"
    elif command -v openssl >/dev/null 2>&1; then
        openssl dgst -sha256 -r < "$1"
    else
        fail "needs sha256sum, shasum or openssl to check what was fetched"
    fi | sed 's/[^0-9a-f].*//'
}

# make_folder DIR: below the prefix; what is made is written into the new list, before it is there to be left behind.
make_folder() {
    [ ! -d "$prefix/$1" ] || return 0
    case $1 in */*) make_folder "${1%/*}" || return 1 ;; esac
    echo "$1/" >> "$work/made" || return 1
    mkdir "$prefix/$1"
}

# Files that are in the way and nobody's but ours are put aside until all is done. Whoever calls this or make_folders
# asks for its status, for which the shell puts `set -e` out of force: each command's own is asked for here.
place_files() {
    while IFS= read -r file; do
        if is_there "$prefix/$file"; then
            mkdir -p "$work/old/$(dirname "$file")" && mv "$prefix/$file" "$work/old/$file" || return 1
        fi
        echo "$file" >> "$work/placed" || return 1
        mv "$tree/$file" "$prefix/$file" || return 1
    done < "$work/files"
}

make_folders() {
    while IFS= read -r file; do
        case $file in */*) make_folder "${file%/*}" || return 1 ;; esac
    done < "$work/files"
}

# As it was before place_files, wherever that was interrupted: a file that was put aside comes back even where nothing
# had come to its place yet.
put_back() {
    is_back=yes
    while IFS= read -r file; do
        if grep -qxF -e "$file" "$work/placed"; then rm -f "$prefix/$file" || is_back=no; fi
        if is_there "$work/old/$file" && ! is_there "$prefix/$file"; then
            mv "$work/old/$file" "$prefix/$file" || is_back=no
        fi
    done < "$work/files"
    remove_folders < "$work/made" > /dev/null
    [ "$is_back" = yes ]
}

# Removes those folders that are empty, the innermost first, and says which are left. Reads them as the list has them.
remove_folders() {
    physical=$(cd "$prefix" && pwd -P) || return 0
    LC_ALL=C sort -r | {
        above=
        while IFS= read -r folder; do
            case $folder in
                *[!/]*) rmdir "$prefix/$folder" 2>/dev/null || [ ! -d "$prefix/$folder" ] || echo "$folder" ;;
                *) above="$folder $above" ;;
            esac
        done
        for folder in $above; do
            rmdir "$physical" 2>/dev/null || [ ! -d "$physical" ] || echo "$folder"
            physical=${physical%/*}
        done
    }
}

# check_list: that all its lines are of files below the prefix.
check_list() {
    while IFS= read -r file || [ -n "$file" ]; do
        case $file in
            '' | .. | ../* | */.. | */../* | /*[!/]*)
                fail "$prefix/$list: its line \"$file\" is not of a file below $prefix; nothing was done"
                ;;
        esac
    done < "$prefix/$list"
}

# The list goes last: whatever interrupts this, it can be called again.
uninstall() {
    [ -f "$prefix/$list" ] || fail "$prefix: nothing that was installed by this script"
    check_list
    left=
    while IFS= read -r file || [ -n "$file" ]; do
        case $file in
            */ | "$list") ;;
            *) rm -f "$prefix/$file" || left="$left$file
" ;;
        esac
    done < "$prefix/$list"
    folders=$(grep '/$' "$prefix/$list" | remove_folders)
    if [ -n "$left" ]; then
        # Where it cannot be written, the whole list stays, which is as good for another try.
        if printf '%s\n' "$left$list${folders:+
$folders}" > "$prefix/$list.new"; then
            mv "$prefix/$list.new" "$prefix/$list" || :
        fi
        rm -f "$prefix/$list.new"
        fail "$prefix: could not be removed, and still in $list:
$left"
    fi
    trap '' INT TERM HUP
    rm -f "$prefix/$list" || fail "$prefix/$list: cannot be removed"
    [ -z "$folders" ] || echo "$folders" | remove_folders > /dev/null
    say "removed from $prefix"
}

# find_prefix: which of the folders that the prefix lies in are there, in `existing`. Those that are not are made, and
# are removed again with what was installed.
find_prefix() {
    rest='' existing=$prefix
    while [ ! -d "$existing/" ]; do
        case ${existing##*/} in
            '' | .) ;;
            ..) fail "$prefix: goes back from a folder that is not there; --prefix names another" ;;
            *) rest=/${existing##*/}$rest ;;
        esac
        existing=${existing%/*}
    done
    prefix=$existing$rest
}

leave() {
    status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ "$is_placing" = yes ] && ! put_back; then
        echo "install.sh: not all could be put back: what is missing in $prefix lies in $work/old" >&2
        work=
    fi
    [ -z "$work" ] || rm -rf "$work"
    while [ "$is_done" = no ] && [ "$prefix" != "$existing" ]; do
        rmdir "$prefix" 2>/dev/null || :
        prefix=${prefix%/*}
    done
    exit $status
}

install_it() {
    find_prefix
    work='' is_placing=no is_done=no
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [ -n "$kind" ] || kind=$(kind_of_this)
    if [ "$is_dry" = yes ]; then
        say "rwkv-edge for $kind, from $place, into $prefix"
        return
    fi
    case $place in
        http://*) say "note: over http, whoever is between can change the files and their sums; https is safer" >&2 ;;
    esac
    mkdir -p "$prefix" || fail "$prefix: cannot be made; --prefix names another folder"
    # Beside what is installed: files come there by renaming, for which the disk cannot be too full.
    work=$(mktemp -d "$prefix/.rwkv-edge-XXXXXX") || fail "$prefix: cannot be written to; --prefix names another folder"
    : > "$work/placed"
    : > "$work/made"
    line=/ folder=$prefix
    while [ "$folder" != "$existing" ]; do
        echo "$line" >> "$work/made"
        line=$line/ folder=${folder%/*}
    done
    fetch SHA256SUMS "$work/SHA256SUMS"
    line=$(grep "^[0-9a-f]\{64\}  rwkv-edge-[0-9][^/ ]*-$kind\.tar\.gz\$" "$work/SHA256SUMS") ||
        fail "$place/SHA256SUMS: names no file for $kind"
    name=${line#*  }
    [ "$(echo "$line" | wc -l)" -eq 1 ] || fail "$place/SHA256SUMS: names several files for $kind"
    fetch "$name" "$work/archive"
    sum=$(sum_of "$work/archive")
    [ "$sum" = "${line%% *}" ] || fail "$name: its SHA-256 is $sum, expected ${line%% *}"
    mkdir "$work/new"
    gzip -dc "$work/archive" > "$work/tar" || fail "$name: cannot be unpacked"
    rm "$work/archive"
    tar -xf "$work/tar" -C "$work/new" || fail "$name: cannot be unpacked into $work"
    rm "$work/tar"
    tree=$work/new/${name%.tar.gz}
    [ -f "$tree/bin/rwkv-edge" ] || fail "$name: has no bin/rwkv-edge"
    if [ "$is_this_machine" = yes ]; then
        "$tree/bin/rwkv-edge" --version >/dev/null || fail "$name: does not run on this machine"
    fi
    # The list comes first, and names all: even if the machine is switched off, no file lies there that is in no list.
    mkdir -p "$tree/${list%/*}"
    : > "$tree/$list"
    {
        echo "$list"
        (cd "$tree" && find . -type f) | sed 's|^\./||' | grep -vxF "$list" | LC_ALL=C sort
    } > "$work/files"
    : > "$work/before"
    if [ -f "$prefix/$list" ]; then
        check_list
        { cat "$prefix/$list" && echo "$list"; } > "$work/before"
    fi
    while IFS= read -r file; do
        if is_there "$prefix/$file" && ! grep -qxF -e "$file" "$work/before"; then
            fail "$prefix/$file: is there already, and not by this script; remove it, or --prefix names another folder"
        fi
        # What a folder has in it is not ours to put aside and remove.
        if [ -d "$prefix/$file" ]; then fail "$prefix/$file: is a folder, and has to be a file"; fi
    done < "$work/files"
    is_placing=yes
    make_folders || fail "$prefix: cannot be written to"
    LC_ALL=C sort -u "$work/before" "$work/made" "$work/files" > "$tree/$list"
    place_files || fail "$prefix: cannot be written to"
    is_placing=no is_done=yes
    # What an earlier version had and this one has not. Until it is gone, it is in the list.
    grep -v '/$' "$work/before" | grep -vxF -f "$work/files" | while IFS= read -r file; do
        rm -f "$prefix/$file" || echo "$file"
    done > "$work/left"
    grep '/$' "$work/before" | LC_ALL=C sort -u - "$work/made" "$work/files" "$work/left" > "$work/list"
    mv "$work/list" "$prefix/$list"
    say "$name is in $prefix"
    case :$PATH: in
        *":$prefix/bin:"*) ;;
        *) say "$prefix/bin is not in PATH" ;;
    esac
}

# All of it is read before anything is done: half a script does nothing.
main() {
    prefix='' kind='' is_this_machine=yes is_dry=no is_removing=no
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix=* | --from=* | --machine=*)
                option=${1%%=*} value=${1#*=}
                shift
                set -- "$option" "$value" "$@"
                ;;
        esac
        case $1 in
            --prefix | --from | --machine)
                [ -n "${2:-}" ] || usage "$1 needs a value"
                case $1 in
                    --prefix) prefix=$2 ;;
                    --from) place=${2%/} ;;
                    --machine) kind=$2 is_this_machine=no ;;
                esac
                shift 2
                ;;
            --dry-run) is_dry=yes && shift ;;
            --uninstall) is_removing=yes && shift ;;
            -h | --help) help && exit ;;
            *) usage "$1: no such option" ;;
        esac
    done
    [ "$is_dry$is_removing" != yesyes ] || usage "--dry-run is not for --uninstall"
    if [ -z "$prefix" ]; then
        prefix=/usr/local
        [ "$(id -u)" = 0 ] || prefix=${HOME:?}/.local
    fi
    case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
    case $kind in
        '' | x86_64-linux-gnu | x86_64-linux-static | aarch64-linux-gnu | aarch64-linux-static | armv7-linux-gnu) ;;
        *) fail "--machine $kind: no such kind of machine" ;;
    esac
    # Others may run what root installs, whatever root's files are otherwise.
    umask 022
    if [ "$is_removing" = yes ]; then uninstall; else install_it; fi
}

main "$@"
