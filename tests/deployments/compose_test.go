package deployments_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// load reads the Compose file as docker compose does, with the example
// environment.
func load(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{path("deployments", "compose.yaml")},
		cli.WithWorkingDirectory(path("deployments")),
		cli.WithEnvFiles(path("deployments", "compose.env.example")), cli.WithDotEnv,
		cli.WithResolvedPaths(true), cli.WithProfiles([]string{"tools"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeRunsEveryService(t *testing.T) {
	project := load(t)
	for _, name := range services(t) {
		s, err := project.GetService(name)
		if err != nil {
			t.Error(err)
			continue
		}
		checkOurs(t, s, name)
		if s.Restart != "unless-stopped" {
			t.Errorf("%s: restart %q: a service comes back after a crash", name, s.Restart)
		}
		if got := s.DependsOn["logins"].Condition; got != types.ServiceConditionCompletedSuccessfully {
			t.Errorf("%s: waits for its login by %q, want %q", name, got, types.ServiceConditionCompletedSuccessfully)
		}
		if url := s.Environment["POSTRIDER_POSTGRES_URL"]; url == nil || !strings.HasPrefix(*url, "postgres://mta_"+name+":") {
			t.Errorf("%s: does not log in by a role of its own", name)
		}
		if url := s.Environment["POSTRIDER_NATS_URL"]; url == nil || !strings.HasPrefix(*url, "tls://postrider:") {
			t.Errorf("%s: reaches NATS without TLS or password", name)
		}
		if !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == *s.Environment["POSTRIDER_NATS_CA"] }) {
			t.Errorf("%s: has no authority for NATS", name)
		}
		for _, variable := range []string{"POSTRIDER_POSTGRES_URL", "POSTRIDER_NATS_URL", "POSTRIDER_HOSTNAME"} {
			if value := s.Environment[variable]; value == nil || *value == "" {
				t.Errorf("%s: %s is empty", name, variable)
			}
		}
	}
	for _, name := range []string{"migrate", "postrider"} {
		s, err := project.GetService(name)
		if err != nil {
			t.Error(err)
			continue
		}
		checkOurs(t, s, "postrider")
	}
	if migrate := project.Services["migrate"]; !slices.Equal(migrate.Command, []string{"migrate", "up"}) {
		t.Errorf("migrate runs %v", migrate.Command)
	}
}

// checkOurs checks what holds for every container of ours; binary is the
// SERVICE that its image is built with.
func checkOurs(t *testing.T, s types.ServiceConfig, binary string) {
	t.Helper()
	if s.Build == nil {
		t.Errorf("%s: no build", s.Name)
		return
	}
	if arg := s.Build.Args["SERVICE"]; arg == nil || *arg != binary {
		t.Errorf("%s: built with SERVICE %v, want %s", s.Name, arg, binary)
	}
	if s.Build.Context != path() || !strings.HasSuffix(s.Build.Dockerfile, "deployments/Dockerfile") {
		t.Errorf("%s: context %s, Dockerfile %s", s.Name, s.Build.Context, s.Build.Dockerfile)
	}
	if want := "postrider/" + binary; s.Image != want {
		t.Errorf("%s: image %s, want %s", s.Name, s.Image, want)
	}
	if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("%s: not confined: read_only %v, cap_drop %v, security_opt %v", s.Name, s.ReadOnly, s.CapDrop, s.SecurityOpt)
	}
	for variable := range s.Environment {
		known(t, "compose.yaml: "+s.Name, variable)
	}
}

func TestComposeStartsInOrder(t *testing.T) {
	project := load(t)
	if got := project.Services["migrate"].DependsOn["postgres"].Condition; got != types.ServiceConditionHealthy {
		t.Errorf("migrate waits for Postgres by %q", got)
	}
	if got := project.Services["logins"].DependsOn["migrate"].Condition; got != types.ServiceConditionCompletedSuccessfully {
		t.Errorf("logins waits for migrate by %q", got)
	}
	for _, name := range append(services(t), "operator") {
		if !slices.ContainsFunc(project.Services["logins"].Command, func(word string) bool { return strings.HasPrefix(word, "--variable="+name+"=") }) {
			t.Errorf("logins gives %s no password", name)
		}
	}
	for _, name := range []string{"postgres", "nats"} {
		s := project.Services[name]
		if s.HealthCheck == nil || len(s.Volumes) == 0 {
			t.Errorf("%s: health check %v, volumes %v: want both", name, s.HealthCheck, s.Volumes)
		}
	}
	ingress := project.Services["ingress"]
	var doors []string
	for _, p := range ingress.Ports {
		if p.HostIP != "127.0.0.1" {
			t.Errorf("ingress publishes %+v, want loopback alone", p)
		}
		doors = append(doors, fmt.Sprintf(":%d", p.Target))
	}
	for _, listener := range listeners {
		if at := ingress.Environment[listener]; at == nil || !slices.Contains(doors, *at) {
			t.Errorf("ingress does not publish %s", listener)
		}
	}
	// Whoever comes by a published port may have the address of the bridge.
	if networks := ingress.Environment["POSTRIDER_RELAY_NETWORKS"]; networks == nil || *networks != "" {
		t.Error("ingress lets networks relay without a password")
	}
}

// Without what the operator must say nothing starts, rather than with a name
// or a password that we made up.
func TestComposeAsksForWhatItNeeds(t *testing.T) {
	values := envFile(t, "deployments", "compose.env.example")
	for missing := range values {
		t.Run(missing, func(t *testing.T) {
			var given []string
			for name, value := range values {
				if name != missing {
					given = append(given, name+"="+value)
				}
			}
			options, err := cli.NewProjectOptions([]string{path("deployments", "compose.yaml")},
				cli.WithWorkingDirectory(path("deployments")), cli.WithEnv(given))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := options.LoadProject(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
				t.Errorf("without %s: %v, want an error that names it", missing, err)
			}
		})
	}
}
