# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# shellcheck shell=bash
#
# Debian packages of any suite and architecture, downloaded and unpacked without touching the machine's own apt or dpkg.
# To be sourced; the caller has set -euo pipefail.

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# The mirror: $BPFSCOPE_DEBIAN_MIRROR, else what the machine's own apt uses for Debian, else (on another distribution)
# what debootstrap would use for Debian.
debian_mirror() {
	local id='' codename='' mirror

	if [[ -n ${BPFSCOPE_DEBIAN_MIRROR:-} ]]; then
		echo "${BPFSCOPE_DEBIAN_MIRROR%/}"
		return
	fi
	if [[ -r /etc/os-release ]]; then
		id=$(. /etc/os-release && echo "${ID:-}")
		codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	fi
	if [[ $id == debian ]]; then
		# indextargets reads both .list and .sources files; the first main of this very release is the mirror.
		# Third-party sources name suites of their own.
		# shellcheck disable=SC2016 # apt-get fills it in
		mirror=$(env -u APT_CONFIG apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' \
			'Created-By: Packages' 2>/dev/null |
			awk -v c="$codename" '($1 == c || $1 ~ /^(stable|testing|unstable|sid)$/) && $2 == "main" && $3 !~ /^cdrom:/ && !n++ { print $3 }') || :
	elif [[ -r /usr/sbin/debootstrap ]]; then
		mirror=$(sed -n '/^[[:space:]]*DEF_MIRROR=/ { s/^[^=]*="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p; q }' /usr/sbin/debootstrap)
	fi
	[[ -n ${mirror:-} ]] ||
		die 'no Debian mirror is known here: set BPFSCOPE_DEBIAN_MIRROR to the address of one.'
	echo "${mirror%/}"
}

# The security archive stands beside the mirror under the same name with -security.
debian_security_mirror() {
	echo "${BPFSCOPE_DEBIAN_SECURITY_MIRROR:-$(debian_mirror)-security}"
}

# debian_apt DIR ARCH SUITE: from here on apt-get and apt-cache see that suite alone, with every file of theirs in DIR.
# With nothing in the dpkg status file, installing (--download-only) means fetching everything that is needed.
# Fails when the suite cannot be had.
debian_apt() {
	local dir=$1 arch=$2 suite=$3 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg

	[[ -r $keyring ]] || die "$keyring is missing: install debian-archive-keyring."
	case $suite in
	*-security) mirror=$(debian_security_mirror) ;;
	*) mirror=$(debian_mirror) ;;
	esac
	mkdir -p "$dir"/{lists/partial,archives/partial,state,etc}
	: >"$dir/status"
	echo "deb [arch=$arch signed-by=$keyring] $mirror $suite main" >"$dir/etc/sources.list"
	# Check-Valid-Until: the Release file of a suite that is no longer maintained, or of a frozen mirror, has expired.
	# Sandbox::User: the user _apt may not enter a home directory.
	cat >"$dir/apt.conf" <<-END
		Dir::State "$dir/state";
		Dir::State::Lists "$dir/lists";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir";
		Dir::Cache::archives "$dir/archives";
		Dir::Etc::SourceList "$dir/etc/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::Etc::Preferences "/dev/null";
		Dir::Etc::PreferencesParts "/dev/null";
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
		Acquire::Check-Valid-Until "false";
		Acquire::Languages "none";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
		Debug::NoLocking "true";
		Dpkg::Use-Pty "false";
		quiet "1";
	END
	export APT_CONFIG=$dir/apt.conf
	apt-get -qq -o APT::Update::Error-Mode=any update >&2
}

# debian_depends PACKAGE REGEX: the first direct dependency of PACKAGE whose name matches, as NAME.
debian_depends() {
	apt-cache depends --no-recommends --no-suggests "$1" | awk -v re="$2" '$1 == "Depends:" && $2 ~ re && !n++ { print $2 }'
}

# debian_version PACKAGE: the version that would be downloaded; nothing when there is no such package.
debian_version() {
	apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# debian_unpack DIR PACKAGE…: these packages, unpacked into DIR.
debian_unpack() {
	local dir=$1 debs deb
	shift
	debs=$(mktemp -d "$dir.debs.XXXXXX")
	mkdir -p "$dir"
	(cd "$debs" && apt-get -qq download "$@" >&2) || { rm -rf "$debs"; return 1; }
	for deb in "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$dir" || { rm -rf "$debs"; return 1; }
	done
	rm -rf "$debs"
}

# debian_closure DIR PACKAGE: the package with everything that it depends on, unpacked into DIR.
debian_closure() {
	local dir=$1 package=$2 all
	all=$(apt-get -qq --print-uris install "$package" | awk '{ sub(/_.*/, "", $2); print $2 }')
	[[ -n $all ]] || return 1
	# shellcheck disable=SC2086 # one word a package
	debian_unpack "$dir" $all
}

# debian_wrap ROOT PROGRAM: how to run PROGRAM of an unpacked closure with the closure's own C library: an array in `wrapped`.
# (A closure that will be moved to ROOT stands in HERE, the third argument, for now.)
debian_wrap() {
	local root=$1 program=$2 here=${3:-$1} lib=usr/lib/x86_64-linux-gnu
	local ld=$lib/ld-linux-x86-64.so.2
	[[ -x $here/$ld && -x $here/${program#"$root/"} ]] || return 1
	# shellcheck disable=SC2034 # read by the caller
	wrapped=("$root/$ld" --library-path "$root/$lib" "$program")
}

# number BYTES FILE OFFSET: one little-endian number
number() {
	od -An -v -t "u$1" -j "$3" -N "$1" "$2" | tr -d ' '
}

# slice FILE OFFSET LENGTH
slice() {
	# head closes the pipe early, which is no failure
	{ tail -c +$(($2 + 1)) "$1" || :; } 2>/dev/null | head -c "$3"
}

# kernel_proper VMLINUZ: the kernel itself out of its self-decompressing wrapping, to stdout: an ELF file on x86, an Image on arm64.
kernel_proper() {
	local file=$1 offset length magic decompress
	if [[ $(slice "$file" 4 4 | tr -d '\0') == zimg ]]; then
		# EFI zboot (arm64): "MZ", "zimg", offset and size of the payload
		offset=$(number 4 "$file" 8) length=$(number 4 "$file" 12)
	elif [[ $(slice "$file" 514 4 | tr -d '\0') == HdrS ]]; then
		# bzImage: the payload's place is counted from the end of the setup sectors
		offset=$((($(number 1 "$file" 497) + 1) * 512 + $(number 4 "$file" 584))) length=$(number 4 "$file" 588)
	else
		offset=0 length=$(stat -c %s "$file")
	fi
	magic=$(od -An -v -t x1 -j "$offset" -N 4 "$file" | tr -d ' ')
	case $magic in
	1f8b*) decompress=(gzip -dcq) ;;
	28b52ffd) decompress=(zstd -dcq) ;;
	fd377a58) decompress=(xz -dcq --single-stream) ;;
	*) decompress=(cat) ;;
	esac
	# Decompressors complain about the word that follows the payload (its size); whether the result is good shows in its use.
	slice "$file" "$offset" "$length" | "${decompress[@]}" 2>/dev/null || :
}
