#!/bin/sh
# Installs the command rwkv-edge: finds out which of the released files this machine runs, fetches it, checks its sum,
# and puts it under a folder such as ~/.local. What fails leaves everything as it was.
#
# usage: install.sh [--prefix DIR] [--from PLACE] [--machine KIND] [--dry-run]
#        install.sh --uninstall [--prefix DIR]
#     --prefix DIR     where bin and share are; /usr/local for root, ~/.local for others
#     --from PLACE     address or folder of the released files; the latest release without it
#     --machine KIND   x86_64-linux-gnu, x86_64-linux-static, aarch64-linux-gnu, aarch64-linux-static or
#                      armv7-linux-gnu, for installing into another machine's files; this machine's own without it
#     --dry-run        only says what would be installed
#     --uninstall      removes what was installed there, and nothing else
# Needs curl or wget (not for a folder), tar and gzip, and sha256sum, shasum or openssl.
set -eu

place=https://github.com/rwkv-edge/rwkv-edge/releases/latest/download
glibc_needed=2.17
# What was installed, a file a line, and the folders that were made for it, which end in a slash.
list=share/rwkv-edge/installed

say() { echo "install.sh: $*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }
usage() {
    cat >&2 <<'TEXT'
usage: install.sh [--prefix DIR] [--from PLACE] [--machine KIND] [--dry-run]
       install.sh --uninstall [--prefix DIR]
TEXT
    exit 2
}

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
            if command -v curl >/dev/null 2>&1; then
                curl -fsSL --retry 3 -o "$2" "$place/$1" || fail "$place/$1: cannot be fetched"
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

# make_folder DIR: below the prefix; what is made is written into the new list.
make_folder() {
    [ ! -d "$prefix/$1" ] || return 0
    case $1 in */*) make_folder "${1%/*}" ;; esac
    mkdir "$prefix/$1" || return 1
    echo "$1/" >> "$work/made"
}

# Files that are in the way and nobody's but ours are put aside until all is done.
place_files() {
    while IFS= read -r file; do
        case $file in */*) make_folder "${file%/*}" || return 1 ;; esac
        if [ -e "$prefix/$file" ] || [ -h "$prefix/$file" ]; then
            mkdir -p "$work/old/$(dirname "$file")" && mv "$prefix/$file" "$work/old/$file" || return 1
        fi
        echo "$file" >> "$work/placed"
        mv "$tree/$file" "$prefix/$file" || return 1
    done < "$work/files"
}

# As it was before place_files.
put_back() {
    while IFS= read -r file; do
        rm -f "$prefix/$file"
        [ ! -e "$work/old/$file" ] || mv "$work/old/$file" "$prefix/$file"
    done < "$work/placed"
    remove_folders "$work/made"
}

# remove_folders LIST: those of its lines that are folders and empty, the innermost first.
remove_folders() {
    grep '/$' "$1" | LC_ALL=C sort -r | while IFS= read -r folder; do
        rmdir "$prefix/$folder" 2>/dev/null || :
    done
}

uninstall() {
    [ -f "$prefix/$list" ] || fail "$prefix: nothing that was installed by this script"
    kept=$(mktemp)
    trap 'rm -f "$kept"' EXIT
    cat "$prefix/$list" > "$kept"
    while IFS= read -r file; do
        case $file in
            */) ;;
            *) rm -f "$prefix/$file" || fail "$prefix/$file: cannot be removed" ;;
        esac
    done < "$kept"
    remove_folders "$kept"
    say "removed from $prefix"
}

leave() {
    status=$?
    trap - EXIT
    [ "$is_placing" = no ] || put_back
    [ -z "$work" ] || rm -rf "$work"
    if [ "$made_prefix" = yes ] && [ "$is_done" = no ]; then rmdir "$prefix" 2>/dev/null || :; fi
    exit $status
}

install_it() {
    work='' is_placing=no is_done=no made_prefix=no
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [ -n "$kind" ] || kind=$(kind_of_this)
    if [ "$is_dry" = yes ]; then
        say "rwkv-edge for $kind, from $place, into $prefix"
        return
    fi
    if [ ! -d "$prefix" ]; then
        mkdir -p "$prefix" || fail "$prefix: cannot be made; --prefix names another folder"
        made_prefix=yes
    fi
    # Beside what is installed: files come there by renaming, for which the disk cannot be too full.
    work=$(mktemp -d "$prefix/.rwkv-edge-XXXXXX") || fail "$prefix: cannot be written to; --prefix names another folder"
    : > "$work/placed"
    : > "$work/made"
    # The prefix itself, as a line of the list.
    [ "$made_prefix" = no ] || echo / > "$work/made"
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
    (cd "$tree" && find . -type f | sed 's|^\./||' | LC_ALL=C sort) > "$work/files"
    : > "$work/before"
    [ ! -f "$prefix/$list" ] || cat "$prefix/$list" > "$work/before"
    while IFS= read -r file; do
        if [ -e "$prefix/$file" ] && ! grep -qxF "$file" "$work/before"; then
            fail "$prefix/$file: is there already, and not by this script; remove it, or --prefix names another folder"
        fi
    done < "$work/files"
    # The list is one of the files, and so is written before they are placed.
    mkdir -p "$tree/${list%/*}"
    echo "$list" >> "$work/files"
    is_placing=yes
    make_folder "${list%/*}" || fail "$prefix: cannot be written to"
    : > "$tree/$list"
    place_files || fail "$prefix: cannot be written to"
    grep '/$' "$work/before" | LC_ALL=C sort -u - "$work/made" "$work/files" > "$work/list"
    mv "$work/list" "$prefix/$list" || fail "$prefix/$list: cannot be written"
    is_placing=no is_done=yes
    # What an earlier version had and this one has not.
    grep -v '/$' "$work/before" | grep -vxF -f "$work/files" | while IFS= read -r file; do rm -f "$prefix/$file"; done
    say "$name is in $prefix"
    case :$PATH: in
        *":$prefix/bin:"*) ;;
        *) say "$prefix/bin is not in PATH" ;;
    esac
}

# All of it is read before anything is done: half a script does nothing.
main() {
    prefix=/usr/local
    [ "$(id -u)" = 0 ] || prefix=${HOME:?}/.local
    kind='' is_this_machine=yes is_dry=no is_removing=no
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --from | --machine)
                [ -n "${2:-}" ] || usage
                case $1 in
                    --prefix) prefix=$2 ;;
                    --from) place=${2%/} ;;
                    --machine) kind=$2 is_this_machine=no ;;
                esac
                shift 2
                ;;
            --dry-run) is_dry=yes && shift ;;
            --uninstall) is_removing=yes && shift ;;
            *) usage ;;
        esac
    done
    case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
    case $kind in
        '' | x86_64-linux-gnu | x86_64-linux-static | aarch64-linux-gnu | aarch64-linux-static | armv7-linux-gnu) ;;
        *) fail "--machine $kind: no such kind of machine" ;;
    esac
    if [ "$is_removing" = yes ]; then uninstall; else install_it; fi
}

main "$@"
