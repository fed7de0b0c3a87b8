package store_test

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// definers are the functions that run with the rights of the owner, by the
// roles that may call them. Each is a way around the privileges of tables: a
// new one is thought about here first.
var definers = map[string][]string{
	"announce_hostname":  {"postrider_ingress"},
	"block_source":       {"postrider_delivery", "postrider_operator"},
	"count_accounts":     {"postrider_scheduler"},
	"ensure_partition":   nil,
	"ensure_partitions":  {"postrider_bounce", "postrider_ingress", "postrider_scheduler"},
	"retire_contents":    {"postrider_scheduler"},
	"retire_history":     {"postrider_scheduler"},
	"retire_idempotency": {"postrider_scheduler"},
	"rotate_bus_key":     {"postrider_operator", "postrider_scheduler"},
	"rule_version":       nil, // a trigger
	"submit":             {"postrider_submit"},
}

func TestWhoMayCallWhatRunsAsTheOwner(t *testing.T) {
	f := setup(t)
	type function struct {
		Name    string
		Setting string
		Callers []string
	}
	rows, err := f.db.Query(t.Context(), `SELECT p.proname, coalesce((SELECT s FROM unnest(p.proconfig) s WHERE s LIKE 'search_path=%'), ''),
    array_remove(ARRAY(SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' WHEN a.grantee <> p.proowner THEN a.grantee::regrole::text END
          FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a ORDER BY 1), NULL)
FROM pg_proc p WHERE p.pronamespace = 'postrider'::regnamespace AND p.prosecdef ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[function])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, fn := range found {
		seen[fn.Name] = true
		want, known := definers[fn.Name]
		if !known || !slices.Equal(fn.Callers, want) {
			t.Errorf("%s may be called by %v, want %v", fn.Name, fn.Callers, want)
		}
		// Whoever may make temporary objects must not put one before ours.
		if fn.Setting != "search_path=postrider, pg_temp" {
			t.Errorf("%s has %q", fn.Name, fn.Setting)
		}
	}
	for name := range definers {
		if !seen[name] {
			t.Errorf("there is no function %s", name)
		}
	}
}

// PUBLIC is everybody who may connect: the application that submits by SQL
// too.
func TestNothingIsForEverybody(t *testing.T) {
	f := setup(t)
	rows, err := f.db.Query(t.Context(), `SELECT 'function ' || p.oid::regprocedure FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.pronamespace = 'postrider'::regnamespace AND a.grantee = 0
UNION ALL
SELECT 'relation ' || c.oid::regclass FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'postrider'::regnamespace AND a.grantee = 0
UNION ALL
SELECT 'column of ' || c.attrelid::regclass FROM pg_attribute c JOIN pg_class r ON r.oid = c.attrelid, aclexplode(c.attacl) a
WHERE r.relnamespace = 'postrider'::regnamespace AND a.grantee = 0
UNION ALL
SELECT 'schema ' || n.nspname FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'postrider' AND a.grantee = 0`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range found {
		t.Errorf("%s is for everybody", what)
	}
}

// The two roles that people and applications have must not reach what drops
// history or plants partitions.
func TestReadersAndSubmittersCannotRetire(t *testing.T) {
	f := setup(t)
	for _, role := range []string{"postrider_reader", "postrider_submit", "postrider_operator", "postrider_resolver"} {
		for _, call := range []string{`retire_history('2100-01-01')`, `retire_contents('2100-01-01')`, `count_accounts()`,
			`ensure_partition('messages', 'bomb', '2090-01-01', '2091-01-01')`, `ensure_partitions('2090-01-01', '2090-01-02')`} {
			f.exec(t, "SET ROLE "+role)
			if _, err := f.db.Exec(t.Context(), "SELECT postrider."+call); err == nil {
				t.Errorf("%s may call %s", role, call)
			}
			f.exec(t, "RESET ROLE")
		}
	}
}

// What a role may call is of no use to it when it may not call what that
// calls: a function that one of ours uses needs the same callers.
func TestCallersMayCallWhatIsCalled(t *testing.T) {
	f := setup(t)
	rows, err := f.db.Query(t.Context(), `SELECT r.rolname || ' may call ' || outside.proname || ' and not ' || inside.proname
FROM pg_proc outside
JOIN pg_proc inside ON inside.pronamespace = outside.pronamespace AND inside.oid <> outside.oid
    AND outside.prosrc ~ ('\m' || inside.proname || '\(')
JOIN pg_roles r ON r.rolname LIKE 'postrider\_%'
WHERE outside.pronamespace = 'postrider'::regnamespace AND NOT outside.prosecdef
  AND has_function_privilege(r.oid, outside.oid, 'EXECUTE')
  AND NOT EXISTS (SELECT FROM pg_proc same WHERE same.pronamespace = inside.pronamespace AND same.proname = inside.proname
      AND has_function_privilege(r.oid, same.oid, 'EXECUTE'))`)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range found {
		t.Error(what)
	}
}
