package deployments_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// manifests is what kustomize renders, by kind and name.
type manifests struct {
	deployments map[string]apps.Deployment
	services    map[string]core.Service
	configs     map[string]core.ConfigMap
	jobs        map[string]batch.Job
	budgets     map[string]policy.PodDisruptionBudget
	scalers     map[string]autoscaling.HorizontalPodAutoscaler
}

// render runs kustomize, as kubectl apply -k does, and decodes what comes out
// strictly: a field that Kubernetes does not have, or that is there twice, is
// an error.
func render(t *testing.T, folder ...string) manifests {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "kustomize", "build", path(append([]string{"deployments", "k8s"}, folder...)...))
	cmd.Dir = path("tools")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kustomize build: %v", err)
	}
	m := manifests{
		map[string]apps.Deployment{}, map[string]core.Service{}, map[string]core.ConfigMap{}, map[string]batch.Job{},
		map[string]policy.PodDisruptionBudget{}, map[string]autoscaling.HorizontalPodAutoscaler{},
	}
	for document := range strings.SplitSeq(string(out), "\n---\n") {
		if err := m.add([]byte(document)); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
	}
	return m
}

func (m manifests) add(document []byte) error {
	var kind meta.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "apps/v1 Deployment":
		return decode(document, m.deployments)
	case "v1 Service":
		return decode(document, m.services)
	case "v1 ConfigMap":
		return decode(document, m.configs)
	case "batch/v1 Job":
		return decode(document, m.jobs)
	case "policy/v1 PodDisruptionBudget":
		return decode(document, m.budgets)
	case "autoscaling/v2 HorizontalPodAutoscaler":
		return decode(document, m.scalers)
	}
	return fmt.Errorf("%s %s is not checked by this test", kind.APIVersion, kind.Kind)
}

func decode[T any](document []byte, into map[string]T) error {
	var object T
	if err := yaml.UnmarshalStrict(document, &object); err != nil {
		return err
	}
	var named struct{ Metadata meta.ObjectMeta }
	if err := yaml.Unmarshal(document, &named); err != nil {
		return err
	}
	into[named.Metadata.Name] = object
	return nil
}

// config returns the one ConfigMap; its name ends in a hash of its content.
func (m manifests) config(t *testing.T) core.ConfigMap {
	t.Helper()
	for name, c := range m.configs {
		if len(m.configs) == 1 && strings.HasPrefix(name, "postrider-") {
			return c
		}
	}
	t.Fatalf("config maps %v, want one called postrider-<hash>", m.configs)
	return core.ConfigMap{}
}

func TestKubernetesRunsEveryService(t *testing.T) {
	m := render(t, "base")
	all := services(t)
	for _, name := range all {
		d, found := m.deployments["postrider-"+name]
		if !found {
			t.Errorf("no Deployment postrider-%s", name)
			continue
		}
		checkPod(t, m, d.Name, d.Spec.Template.Spec)
		if got := d.Spec.Template.Spec.Containers[0].Image; got != "postrider/"+name {
			t.Errorf("%s: image %s", name, got)
		}
		pods := labels.Set(d.Spec.Template.Labels)
		covers(t, d.Name, d.Spec.Selector, pods)
		for i, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
			covers(t, fmt.Sprintf("%s: spread constraint %d", d.Name, i), c.LabelSelector, pods)
		}
		budget := m.budgets[d.Name]
		covers(t, "disruption budget "+d.Name, budget.Spec.Selector, pods)
		if budget.Spec.MaxUnavailable == nil || budget.Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("disruption budget %s: %v unavailable, want 1", d.Name, budget.Spec.MaxUnavailable)
		}
		if s, found := m.services[d.Name+"-metrics"]; !found || !labels.SelectorFromSet(s.Spec.Selector).Matches(pods) {
			t.Errorf("no Service of the metrics of %s", d.Name)
		}
		scaler, scaled := m.scalers[d.Name]
		if scaled == (d.Spec.Replicas != nil) {
			t.Errorf("%s: replicas %v and a scaler %v: exactly one of them decides", name, d.Spec.Replicas, scaled)
		}
		if scaled && *scaler.Spec.MinReplicas < 2 || !scaled && *d.Spec.Replicas < 2 {
			t.Errorf("%s: fewer than two processes: one of them may die any time", name)
		}
	}
	if len(m.deployments) != len(all) {
		t.Errorf("%d Deployments for %d services", len(m.deployments), len(all))
	}
	for name, scaler := range m.scalers {
		if ref := scaler.Spec.ScaleTargetRef; ref.Kind != "Deployment" || ref.APIVersion != "apps/v1" || m.deployments[ref.Name].Name == "" {
			t.Errorf("scaler %s: target %+v does not exist", name, ref)
		}
	}
	migrate := m.jobs["postrider-migrate"].Spec.Template.Spec
	checkPod(t, m, "postrider-migrate", migrate)
	if got := fmt.Sprint(migrate.Containers[0].Args); got != "[migrate up]" {
		t.Errorf("the migrate Job runs %s", got)
	}
}

func covers(t *testing.T, what string, selector *meta.LabelSelector, pods labels.Set) {
	t.Helper()
	s, err := meta.LabelSelectorAsSelector(selector)
	if err != nil || s.Empty() || !s.Matches(pods) {
		t.Errorf("%s: selector %v does not select the pods with %v (%v)", what, selector, pods, err)
	}
}

// checkPod checks what holds for every pod of ours.
func checkPod(t *testing.T, m manifests, name string, pod core.PodSpec) {
	t.Helper()
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
		t.Errorf("%s: service links set POSTRIDER_* variables of their own", name)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Errorf("%s: gets a token that it does not need", name)
	}
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil {
		t.Errorf("%s: may run as root or without seccomp: %+v", name, s)
	}
	if len(pod.Containers) != 1 {
		t.Fatalf("%s: %d containers, want 1", name, len(pod.Containers))
	}
	c := pod.Containers[0]
	if s := c.SecurityContext; s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.Capabilities == nil || fmt.Sprint(s.Capabilities.Drop) != "[ALL]" {
		t.Errorf("%s: not confined: %+v", name, s)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: resources %+v: want requests of both and a memory limit", name, c.Resources)
	}
	for _, e := range c.Env {
		known(t, name, e.Name)
	}
	if len(c.EnvFrom) != 1 || c.EnvFrom[0].ConfigMapRef == nil || c.EnvFrom[0].ConfigMapRef.Name != m.config(t).Name {
		t.Errorf("%s: environment from %+v, want the ConfigMap %s and no more: secrets are given one by one", name, c.EnvFrom, m.config(t).Name)
	}
	wants := map[string]string{"POSTRIDER_POSTGRES_URL": strings.TrimPrefix(name, "postrider-") + "-postgres-url"}
	if name != "postrider-migrate" {
		wants["POSTRIDER_NATS_URL"] = "nats-url"
		folder := ""
		for _, mount := range c.VolumeMounts {
			if mount.Name == "nats-ca" {
				folder = mount.MountPath
			}
		}
		if i := slices.IndexFunc(c.Env, func(e core.EnvVar) bool { return e.Name == "POSTRIDER_NATS_CA" }); i < 0 || folder == "" || filepath.Dir(c.Env[i].Value) != folder {
			t.Errorf("%s: the authority of NATS is not where POSTRIDER_NATS_CA says", name)
		}
	}
	secrets := secret(t).StringData
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		ref := e.ValueFrom.SecretKeyRef
		if ref == nil || ref.Name != "postrider" || ref.Key != wants[e.Name] || secrets[ref.Key] == "" {
			t.Errorf("%s: %s from %+v, want %q of the Secret postrider, which its example has", name, e.Name, ref, wants[e.Name])
		}
		delete(wants, e.Name)
	}
	if len(wants) > 0 {
		t.Errorf("%s: does not get %v", name, wants)
	}
}

func TestKubernetesProbes(t *testing.T) {
	m := render(t, "base")
	config := m.config(t)
	for name, d := range m.deployments {
		c := d.Spec.Template.Spec.Containers[0]
		ports := map[string]string{}
		for _, p := range c.Ports {
			ports[p.Name] = fmt.Sprintf(":%d", p.ContainerPort)
		}
		if ports["metrics"] != config.Data["POSTRIDER_METRICS_LISTEN"] {
			t.Errorf("%s: port metrics is %s, the process listens on %s", name, ports["metrics"], config.Data["POSTRIDER_METRICS_LISTEN"])
		}
		for path, probe := range map[string]*core.Probe{"/livez": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.String() != "metrics" {
				t.Errorf("%s: probe %+v, want %s on port metrics", name, probe, path)
			}
		}
		if grace := d.Spec.Template.Spec.TerminationGracePeriodSeconds; grace == nil || *grace < 30 {
			t.Errorf("%s: killed after %v s, before it has drained", name, grace)
		}
	}
	smtp := m.services["postrider-ingress"]
	ingress := m.deployments["postrider-ingress"].Spec.Template
	if !labels.SelectorFromSet(smtp.Spec.Selector).Matches(labels.Set(ingress.Labels)) {
		t.Error("the Service of SMTP selects no pod of ingress")
	}
	if smtp.Spec.Type != core.ServiceTypeClusterIP || config.Data["POSTRIDER_RELAY_NETWORKS"] != "" {
		t.Errorf("ingress is open to %s, and %q relay without a password", smtp.Spec.Type, config.Data["POSTRIDER_RELAY_NETWORKS"])
	}
	ports := map[string]int32{}
	for _, p := range ingress.Spec.Containers[0].Ports {
		ports[p.Name] = p.ContainerPort
	}
	var doors []string
	for _, p := range smtp.Spec.Ports {
		doors = append(doors, fmt.Sprintf(":%d", ports[p.TargetPort.String()]))
	}
	for _, listener := range listeners {
		if !slices.Contains(doors, config.Data[listener]) {
			t.Errorf("the Service of ingress has no port for %s, which is %s, but %v", listener, config.Data[listener], doors)
		}
	}
	if hook := ingress.Spec.Containers[0].Lifecycle; hook == nil || hook.PreStop == nil || hook.PreStop.Sleep == nil {
		t.Error("ingress stops before the cluster has heard of it")
	}
}

func TestKubernetesConfiguration(t *testing.T) {
	for _, folder := range [][]string{{"base"}, {"overlays", "example"}} {
		for variable := range render(t, folder...).config(t).Data {
			known(t, filepath.Join(folder...), variable)
		}
	}
	s := secret(t)
	if url := s.StringData["nats-url"]; s.Name != "postrider" || !strings.HasPrefix(url, "tls://postrider:") {
		t.Errorf("secret %s, NATS at %s", s.Name, url)
	}
	for _, name := range services(t) {
		if url := s.StringData[name+"-postgres-url"]; !strings.HasPrefix(url, "postgres://mta_"+name+":") {
			t.Errorf("%s logs in by %s", name, url)
		}
	}
}

// secret is the example of what the pods read.
func secret(t *testing.T) core.Secret {
	t.Helper()
	var s core.Secret
	if err := yaml.UnmarshalStrict([]byte(read(t, "deployments", "k8s", "base", "secret.example.yaml")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKubernetesOverlay(t *testing.T) {
	m := render(t, "overlays", "example")
	for name, d := range m.deployments {
		if image := d.Spec.Template.Spec.Containers[0].Image; !strings.Contains(image, ":v") {
			t.Errorf("%s: image %s has no version: the overlay forgets it", name, image)
		}
		if d.Namespace != "postrider" {
			t.Errorf("%s is in namespace %q", name, d.Namespace)
		}
	}
	if image := m.jobs["postrider-migrate"].Spec.Template.Spec.Containers[0].Image; !strings.Contains(image, ":v") {
		t.Errorf("migrate: image %s has no version", image)
	}
	for _, name := range []string{"resolver", "delivery", "bounce"} {
		var lag *autoscaling.ExternalMetricSource
		for _, metric := range m.scalers["postrider-"+name].Spec.Metrics {
			if metric.External != nil {
				lag = metric.External
			}
		}
		if lag == nil || lag.Metric.Name != "postrider_stage_lag_seconds" || lag.Metric.Selector.MatchLabels["stage"] != name {
			t.Errorf("the scaler of %s does not look at its stage lag: %+v", name, lag)
		}
	}
	// A door for the world believes who the client is, or nobody.
	door := m.services["postrider-ingress"].Spec
	if door.Type != core.ServiceTypeLoadBalancer || door.ExternalTrafficPolicy != core.ServiceExternalTrafficPolicyLocal ||
		m.config(t).Data["POSTRIDER_PROXY_NETWORKS"] == "" || m.config(t).Data["POSTRIDER_HTTP_PROXY_NETWORKS"] == "" || m.config(t).Data["POSTRIDER_RELAY_NETWORKS"] != "" {
		t.Errorf("the door for the world: %+v, %v", door, m.config(t).Data)
	}
	// The name is the one that the scheduler exports.
	if !strings.Contains(read(t, "services", "scheduler", "scheduler_test.go"), "postrider_stage_lag_seconds{stage=") {
		t.Error("no test of the scheduler shows the metric postrider_stage_lag_seconds")
	}
}
