package hostile

// Mistake is one that another server made, or its users met, and the tests
// that show ours does not.
type Mistake struct {
	Words string
	Tests []Test
}

// Test is a test function of a package, below the root of the repository.
type Test struct{ Package, Name string }

// Mistakes are those of delivery.
var Mistakes = []Mistake{
	{"The reply to the final dot is waited for less than ten minutes: one message arrives five times (Postal 3016, KumoMTA's data_dot_timeout)",
		[]Test{{"pkg/shaping", "TestTimeouts"}}},
	{"Mail in a ready queue never expires: thousands of messages for days (KumoMTA 539)",
		[]Test{{"services/scheduler", "TestExpiresInEveryState"}, {"pkg/store", "TestExpireInEveryPlace"}}},
	{"The host is back and its backlog still waits (ZoneMTA 182, 347)",
		[]Test{{"services/delivery", "TestDeadSiteIsProbedAndItsBacklogWakes"}}},
	{"A worker dies and its mail is locked for ever, or deleted with the lock (Postal 1394, 2668, Stalwart 1066)",
		[]Test{{"services/scheduler", "TestClaimsOfTheDeadAreRungAtOnce"}, {"tests/chaos", "TestKillEachService"}}},
	{"The queue does not survive its broker (James 3485)", []Test{{"tests/chaos", "TestNATSLost"}}},
	{"Limits hold for each process or domain alone, and multiply (ZoneMTA 114, 226, 443)",
		[]Test{{"services/delivery", "TestLimitsOfASiteHoldOverDomains"}, {"services/delivery", "TestProvidersLimitTheirSites"}, {"tests/chaos", "TestLimits"}}},
	{"A window of time lets twice the rate through at its edge, or all of it in its first second (ZoneMTA 150, Stalwart)",
		[]Test{{"services/delivery/internal/pace", "TestNoWindowAtTheRemoteHostHoldsMoreThanTheRate"}, {"services/delivery/internal/pace", "TestEventsAreSpread"}}},
	{"The TLS policy of one domain holds for all that share its hosts (KumoMTA 484)",
		[]Test{{"services/resolver/internal/mx", "TestPolicyIsOfTheDomain"}, {"services/delivery", "TestConnectionsAreNotSharedAcrossDemands"}}},
	{"A certificate that does not verify delays mail for which TLS is optional (KumoMTA): expired, wrong-name and self-signed above",
		[]Test{{"tests/remote", "TestHostileHosts"}}},
	{"A message that needs SMTPUTF8 is tried for days (mox 375): smtputf8-missing above", []Test{{"tests/remote", "TestHostileHosts"}}},
	{"421 counts as the message's refusal: the lines 421-* above", []Test{{"tests/remote", "TestHostileHosts"}, {"services/delivery", "TestJudge"}}},
	{"An address that is passed over for policy makes a permanent failure where others are merely unknown (KumoMTA's skip_hosts)",
		[]Test{{"services/resolver/internal/mx", "TestLookup"}}},
	{"IPv6 is tried from a source that has IPv4 only (Postal)", []Test{{"services/delivery", "TestSourceUsesOnlyTheFamiliesThatItHas"}}},
	{"Retries go on from an address that the provider blocks (ZoneMTA 447, Postal 1044)",
		[]Test{{"services/delivery", "TestBlockedSourceIsTakenOutForItsSite"}}},
	{"A pool stands still for a source that nobody has (Postal 801)", []Test{{"services/delivery", "TestSourceThatNobodyHasDoesNotStopItsPool"}}},
	{"Each message has a connection of its own (ZoneMTA 90)", []Test{{"services/delivery", "TestConnectionsAreReused"}}},
	{"Mail cannot be moved to another relay after failures (ZoneMTA 295, KumoMTA 158)",
		[]Test{{"tests/routes", "TestFallback"}, {"tests/routes", "TestLive"}}},
	{"A slow destination delays the others", []Test{{"services/resolver", "TestSlowDomainDelaysNobody"}, {"tests/chaos", "TestIsolation"}}},
	{"A credential leaves over a connection that anybody may read, or a refused password is tried at every host of a provider",
		[]Test{{"tests/routes", "TestCredentials"}}},
	{"A bounce is plain text that no program reads", []Test{{"tests/e2e", "TestPermanentFailure"}}},
}
