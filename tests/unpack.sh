#!/bin/sh
# Unpacks the mail servers that the tests have as peers beside Postfix. Debian's
# packages of mail servers exclude each other, so these are not installed: their
# files, and those of the libraries that are missing here, are unpacked below
# /var/cache/postrider-tests/PACKAGE, and run from there. LD_LIBRARY_PATH has to
# name the folder's usr/lib/TRIPLET; a server that looks for its files under
# fixed paths wants a mount namespace of its own. Needs root and apt-get.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
cache=/var/cache/postrider-tests

# unpack PACKAGE USER...: the users are those that the server insists on.
unpack() {
	package=$1
	shift
	for user in "$@"; do
		id "$user" > /dev/null 2>&1 ||
			useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin "$user"
	done
	[ ! -e "$cache/$package" ] || return 0
	echo "unpacking $package"
	work=$(mktemp -d "$cache/.$package.XXXXXX")
	chmod 755 "$work"
	(
		cd "$work"
		needed=$(apt-get -qq -s --no-install-recommends install "$package" | awk '/^Inst / { print $2 }')
		# shellcheck disable=SC2086 # a list of packages
		apt-get -qq -o APT::Sandbox::User=root download $needed
		for archive in *.deb; do
			dpkg -x "$archive" .
		done
		rm -- *.deb
	)
	mv -T "$work" "$cache/$package" 2> /dev/null || rm -rf "$work" # another run was faster
}

mkdir -p "$cache"
unpack exim4-daemon-light Debian-exim
unpack opensmtpd opensmtpd opensmtpq
