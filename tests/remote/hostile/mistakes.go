package hostile

// Mistake is one that another server made, or its users met, and the tests
// that show ours does not.
type Mistake struct {
	Words string
	Tests []Test
}

// Test is a test function of a package, below the root of the repository.
type Test struct{ Package, Name string }

// Mistakes are those of delivery, of retries and of reports. Those of one
// subject stand in its document: docs/routes.md, shaping.md, sources.md, tls.md.
var Mistakes = []Mistake{
	{"The reply to the final dot is waited for less than ten minutes: one message arrives five times (Postal 3016, KumoMTA's data_dot_timeout)",
		[]Test{{"pkg/shaping", "TestTimeouts"}}},
	{"Mail in a ready queue never expires: thousands of messages for days (KumoMTA 539); mail is held until somebody remembers it (Postal)",
		[]Test{{"services/scheduler", "TestExpiresInEveryState"}, {"pkg/store", "TestExpireInEveryPlace"}}},
	{"The host is back and its backlog still waits (ZoneMTA 182, 347, OpenSMTPD 224)",
		[]Test{{"services/delivery", "TestDeadSiteIsProbedAndItsBacklogWakes"}}},
	{"Whoever goes on for a process that died knows nothing of dead hosts, and meets them with all it has (KumoMTA's memory is lost with the process)",
		[]Test{{"services/delivery", "TestANewHomeLeavesADeadHostAlone"}, {"services/delivery", "TestANewHomeTriesADeadAddressLast"}}},
	{"One connection that fails stops a destination (Postfix's default), or it takes a hundred (KumoMTA)",
		[]Test{{"services/delivery", "TestBreaker"}}},
	{"A worker dies and its mail is locked for ever, deleted with the lock, or waits for a worker of the same name (Postal 1394, 2668, Stalwart 1066, ZoneMTA)",
		[]Test{{"services/scheduler", "TestClaimsOfTheDeadAreRungAtOnce"}, {"tests/chaos", "TestKillEachService"}}},
	{"Workers race for one message, which arrives 17 times (Postal 2222, 198)",
		[]Test{{"pkg/store", "TestClaimIsFenced"}, {"services/resolver", "TestRepeatedHintsAreHarmless"}, {"tests/chaos", "TestKillInMidTransaction"}}},
	{"A process that ends cuts off the reply to a final dot: a duplicate (KumoMTA)",
		[]Test{{"services/delivery", "TestShutdownGivesBackAndFreesTheSlots"}, {"tests/chaos", "TestRollingRestart"}}},
	{"The queue does not survive its broker (James 3485), or the message is told of before it is stored (James 4056)",
		[]Test{{"tests/chaos", "TestNATSLost"}, {"tests/chaos", "TestAcceptedIsStored"}}},
	{"A broker that cannot delay has no retries (James 3540); one retry after six hours is all (James); the schedule is fixed in the program (maddy, chasquid)",
		[]Test{{"pkg/retry", "TestNextFollowsTheSchedule"}, {"pkg/store", "TestDelayedRecipientIsRungAgainInTime"}}},
	{"All that failed together comes back together",
		[]Test{{"pkg/retry", "TestJitterSpreads"}}},
	{"Delayed mail is delayed again and again while newer mail goes out (haraka-plugin-limit 6)",
		[]Test{{"services/delivery", "TestWaitingForARateIsNoAttempt"}, {"services/delivery", "TestOldestFirstWithinATenant"}, {"services/delivery", "TestAJobIsNotPassedForEver"}}},
	{"\"Try again in five minutes\" is not heard, or a host that greylists is left alone for hours",
		[]Test{{"services/delivery", "TestSaidTime"}, {"services/delivery", "TestPatience"}, {"tests/servers", "TestPostfix"}}},
	{"A network error is a failure for good at the second try (hyvor/relay)",
		[]Test{{"tests/remote", "TestHostileHosts"}, {"services/delivery", "TestJudgeIsTotal"}}},
	{"421 counts as the message's refusal: the lines 421-* above",
		[]Test{{"tests/remote", "TestHostileHosts"}, {"services/delivery", "TestJudge"}}},
	{"What a host says to nobody is taken for the answer to the next command: the lines *-unasked above",
		[]Test{{"tests/remote", "TestHostileHosts"}}},
	{"Mail comes back because a host refuses a parameter of what it offers itself: the lines *-lie above",
		[]Test{{"tests/remote", "TestHostileHosts"}, {"services/delivery/internal/smtpclient", "TestParametersThatAreRefused"}}},
	{"452 to the hundred and first recipient delays it (RFC 5321 §4.5.3.1.10)",
		[]Test{{"services/delivery", "TestTooManyRecipientsGoInTheNextTransaction"}}},
	{"A message that needs SMTPUTF8 is tried for days (mox 375): smtputf8-missing above",
		[]Test{{"tests/remote", "TestHostileHosts"}}},
	{"8-bit mail for a host without 8BITMIME comes back (KumoMTA), leaves as it is (ZoneMTA, Haraka), or loses its signature without a word (Postfix)",
		[]Test{{"services/delivery/internal/smtpclient", "TestConversion"}}},
	{"A message that is too large is found out when it is there",
		[]Test{{"services/delivery/internal/smtpclient", "TestSizeIsCheckedBeforeSending"}}},
	{"Each message has a connection of its own (ZoneMTA 90, Haraka 3), or connections that nobody needs keep others out",
		[]Test{{"services/delivery", "TestConnectionsAreReused"}, {"services/delivery", "TestIdleConnections"}, {"services/delivery", "TestIdleConnectionsMakeWay"}}},
	{"A slow destination delays the others",
		[]Test{{"services/resolver", "TestSlowDomainDelaysNobody"}, {"tests/chaos", "TestIsolation"}, {"services/delivery", "TestSitesThatCrawlLeaveRoom"}}},
	{"A host that is slow but steady is cut off, or one that drips holds a connection for ever",
		[]Test{{"services/delivery/internal/smtpclient", "TestSlowButSteady"}, {"tests/remote", "TestHostileHosts"}}},
	{"There is no priority (Postal 443, 1118), it starves the others (Postal 3446), or turns are not fair (KumoMTA 321)",
		[]Test{{"services/delivery", "TestPasswordResetIsNotHeldUp"}, {"services/delivery", "TestPrioritiesShareByWeight"}, {"services/delivery", "TestPullsAreDividedFairly"}}},
	{"What operators did is not counted, or counted too low (KumoMTA's rebind and bounce)",
		[]Test{{"pkg/store", "TestOperate"}}},
	{"One message cannot be looked at (KumoMTA 231), or found by its sender (Stalwart 1045)",
		[]Test{{"pkg/store", "TestShowTellsTheWholeStory"}, {"pkg/store", "TestQueueFilters"}}},
	{"A bounce is plain text that no program reads (Postal), or there is none (KumoMTA)",
		[]Test{{"tests/e2e", "TestPermanentFailure"}, {"services/bounce/internal/dsn", "TestGolden"}}},
	{"A bounce for each recipient, with all of the message",
		[]Test{{"services/bounce", "TestOneReportForRecipientsThatFailTogether"}, {"services/bounce/internal/dsn", "TestRetFullOnlyWhenItFits"}}},
	{"A bounce bounces",
		[]Test{{"tests/e2e", "TestNullReversePathNeverReported"}}},
	{"What NOTIFY asks for is lost at a host without DSN (KumoMTA, Haraka, ZoneMTA, Postal, maddy, mox)",
		[]Test{{"services/bounce", "TestWhoHears"}, {"pkg/mail", "TestPlanReport"}}},
	{"Reports count against the limits of the tenant that they are for (Stalwart 966, 1759)",
		[]Test{{"services/bounce", "TestExactlyOneWhenProcessesRaceAndDie"}}},
}
