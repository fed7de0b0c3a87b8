#!/bin/sh
# Installs what the tests need beside Go: Postgres, the tools of Postfix
# (smtp-source and smtp-sink are the load and the remote hosts), swaks and
# Python, msmtp, curl and Node.js as real clients, Dovecot for LMTP and SASL,
# Exim and OpenSMTPD as other mail servers (unpack.sh), HAProxy, Unbound and a signer of
# zones for DNSSEC, dkimpy as another verifier of DKIM, Sisimai and flufl.bounce
# as readers of reports, and a C compiler for the race detector. As root on Debian or Ubuntu it installs what is missing;
# otherwise it says so and fails. Servers that the packages would start are not
# started: tests start their own.
set -eu
cd "$(dirname "$0")"

PATH="$PATH:/usr/sbin:/sbin"

have() { command -v "$1" > /dev/null 2>&1; }

# missing prints the Debian packages whose programs are not here.
missing() {
	have initdb || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || echo postgresql
	{ have smtp-source && have smtp-sink && have postfix; } || echo postfix
	{ have swaks && perl -MNet::SSLeay -e 1 2> /dev/null; } || echo swaks libnet-ssleay-perl
	have msmtp || echo msmtp
	{ have dovecot && [ -e /usr/lib/dovecot/lmtp ]; } || echo dovecot-lmtpd
	have python3 || echo python3
	have curl || echo curl
	{ have node && have npm; } || echo nodejs npm
	have cc || echo gcc libc6-dev
	have haproxy || echo haproxy
	have unbound || echo unbound
	have ldns-signzone || echo ldnsutils
	have dkimverify || echo python3-dkim
	perl -MSisimai -e 1 2> /dev/null || echo libsisimai-perl
	/usr/bin/python3 -c 'import flufl.bounce' 2> /dev/null || echo python3-flufl.bounce
}

# What is there beside packages, each in a folder of its own that is complete.
cache=/var/cache/postrider-tests
unpacked() { [ -e $cache/exim4-daemon-light ] && [ -e $cache/opensmtpd ]; }
clients() { cmp -s clients/package-lock.json $cache/clients/package-lock.json; }

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || ! unpacked || ! clients || exit 0

if [ "$(id -u)" != 0 ] || ! have apt-get; then
	echo "the tests need what $0 installs as root; packages missing: ${packages:-none}" >&2
	exit 1
fi

if [ -n "$packages" ] || ! unpacked; then
	apt-get -qq update
fi
if [ -n "$packages" ]; then
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
	# shellcheck disable=SC2086 # a list of packages
	apt-get -qq install -y --no-install-recommends $packages > /dev/null
fi

packages=$(missing | tr '\n' ' ')
if [ -n "$packages" ]; then
	echo "still missing after apt-get: $packages" >&2
	exit 1
fi

unpacked || ./unpack.sh
if ! clients; then
	echo "installing clients of Node.js"
	work=$(mktemp -d $cache/.clients.XXXXXX)
	chmod 755 "$work"
	cp clients/package.json clients/package-lock.json "$work"
	npm ci --silent --no-audit --no-fund --prefix "$work"
	rm -rf $cache/clients
	mv "$work" $cache/clients
fi
