package check

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// manifests reads documents strictly: a field that the Kubernetes API does not have is an error, and so is one that is there twice.
func manifests(t *testing.T, text string) (all []any) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		object, known := map[string]any{
			"apps/v1 Deployment":            &appsv1.Deployment{},
			"apps/v1 StatefulSet":           &appsv1.StatefulSet{},
			"batch/v1 Job":                  &batchv1.Job{},
			"policy/v1 PodDisruptionBudget": &policyv1.PodDisruptionBudget{},
			"v1 Service":                    &corev1.Service{},
		}[kind.APIVersion+" "+kind.Kind]
		if !known {
			t.Fatalf("%s %s is not known here", kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
		all = append(all, object)
	}
	return all
}

func TestKubernetes(t *testing.T) {
	t.Parallel()
	for _, file := range glob(t, "../kubernetes/*.yaml") {
		t.Run(path.Base(file), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			labels, selectors := map[string]bool{}, map[string]map[string]string{}
			for _, object := range manifests(t, string(text)) {
				var pod *corev1.PodTemplateSpec
				switch o := object.(type) {
				case *appsv1.Deployment:
					pod, selectors["Deployment"] = &o.Spec.Template, o.Spec.Selector.MatchLabels
				case *batchv1.Job:
					pod = &o.Spec.Template
				case *policyv1.PodDisruptionBudget:
					selectors["PodDisruptionBudget"] = o.Spec.Selector.MatchLabels
				case *corev1.Service:
					selectors["Service"] = o.Spec.Selector
				}
				if pod == nil {
					continue
				}
				for name, value := range pod.Labels {
					labels[name+"="+value] = true
				}
				checkPod(t, &pod.Spec)
			}
			for kind, selector := range selectors {
				for name, value := range selector {
					if !labels[name+"="+value] {
						t.Errorf("the %s selects %s=%s, and no pod has that", kind, name, value)
					}
				}
			}
		})
	}
}

// TestKubernetesSnippets holds that the manifests shown in docs/deploy.md are such.
func TestKubernetesSnippets(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	snippets := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(snippets) == 0 {
		t.Fatal("there are none")
	}
	for _, snippet := range snippets {
		for _, object := range manifests(t, snippet[1]) {
			if o, ok := object.(*appsv1.StatefulSet); ok {
				for i := range o.Spec.Template.Spec.InitContainers {
					checkCommand(t, &o.Spec.Template.Spec.InitContainers[i])
				}
			}
		}
	}
}

func checkPod(t *testing.T, pod *corev1.PodSpec) {
	t.Helper()
	all := slices.Concat(pod.InitContainers, pod.Containers)
	files := map[string][]string{} // of each volume
	for _, volume := range pod.Volumes {
		for _, item := range volume.Secret.Items {
			files[volume.Name] = append(files[volume.Name], item.Path)
		}
	}
	s := pod.SecurityContext
	if !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || *pod.AutomountServiceAccountToken {
		t.Errorf("the pod may do more than it needs: %v", s)
	}
	for i := range all {
		c := &all[i]
		t.Run(c.Name, func(t *testing.T) {
			checkCommand(t, c)
			checkRights(t, c)
			checkProbes(t, c, i < len(pod.InitContainers))
			var mounted []string
			for _, mount := range c.VolumeMounts {
				for _, file := range files[mount.Name] {
					mounted = append(mounted, path.Join(mount.MountPath, file))
				}
			}
			for _, env := range c.Env {
				if strings.HasSuffix(env.Name, "_FILE") && !slices.Contains(mounted, env.Value) {
					t.Errorf("%s is %s, and only %v are mounted", env.Name, env.Value, mounted)
				}
			}
		})
	}
}

func checkCommand(t *testing.T, c *corev1.Container) {
	t.Helper()
	var variables []string
	for _, env := range c.Env {
		variables = append(variables, env.Name)
	}
	checkSettings(t, c.Command, variables)
}

func checkRights(t *testing.T, c *corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("it may do more than it needs: %v", s)
	}
	if c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("resources %v", c.Resources)
	}
}

// checkProbes holds what is asked where. Kubernetes waits for the start of a sidecar, and counts its readiness as the pod's: either would
// take the service beside it down with ClickHouse.
func checkProbes(t *testing.T, c *corev1.Container, sidecar bool) {
	t.Helper()
	if c.Command[len(c.Command)-1] == "migrate" {
		return
	}
	asked := map[string]string{}
	for name, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if probe != nil {
			asked[name] = probe.HTTPGet.Path
			if !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == probe.HTTPGet.Port.StrVal }) {
				t.Errorf("the %s probe asks port %s, which it does not have", name, probe.HTTPGet.Port.StrVal)
			}
		}
	}
	switch {
	case asked["liveness"] != "/livez":
		t.Errorf("the liveness probe asks %q", asked["liveness"])
	case sidecar && (len(asked) > 1 || c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways):
		t.Errorf("a sidecar with probes %v and restartPolicy %v", asked, c.RestartPolicy)
	case !sidecar && (asked["startup"] == "" || asked["readiness"] != "/readyz"):
		t.Errorf("probes %v", asked)
	}
}
