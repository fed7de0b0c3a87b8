#!/bin/sh
# Installs what the tests need beside Go: Postgres, the tools of Postfix
# (smtp-source and smtp-sink are the load and the remote hosts), swaks and
# Python, msmtp and curl as real clients, and a C compiler for the race detector. As root on
# Debian or Ubuntu it installs what is missing; otherwise it says so and fails.
# Servers that the packages would start are not started: tests start their own.
set -eu

PATH="$PATH:/usr/sbin:/sbin"

have() { command -v "$1" > /dev/null 2>&1; }

# missing prints the Debian packages whose programs are not here.
missing() {
	have initdb || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || echo postgresql
	{ have smtp-source && have smtp-sink && have postfix; } || echo postfix
	have swaks || echo swaks
	have msmtp || echo msmtp
	have python3 || echo python3
	have curl || echo curl
	have cc || echo gcc libc6-dev
}

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ] || ! have apt-get; then
	echo "the tests need these packages, install them first: $packages" >&2
	exit 1
fi

echo "installing $packages"
# No policy-rc.d of the machine's own is touched.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' > $policy
	chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
apt-get -qq update
# shellcheck disable=SC2086 # a list of packages
apt-get -qq install -y --no-install-recommends $packages > /dev/null

packages=$(missing | tr '\n' ' ')
if [ -n "$packages" ]; then
	echo "still missing after apt-get: $packages" >&2
	exit 1
fi
