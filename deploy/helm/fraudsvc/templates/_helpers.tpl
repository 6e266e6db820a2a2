{{- define "fraudsvc.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "fraudsvc.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "fraudsvc.selector" -}}
app.kubernetes.io/name: fraudsvc
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "fraudsvc.labels" -}}
{{ include "fraudsvc.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "fraudsvc.query" -}}
{{- range $name, $value := . }}&{{ $name }}={{ $value | toString | urlquery }}{{ end -}}
{{- end -}}

{{- define "fraudsvc.bootstrap" -}}
{{- if .Values.kafka.bootstrap -}}
{{ .Values.kafka.bootstrap }}
{{- else if .Values.strimzi.enabled -}}
{{ include "fraudsvc.name" . }}-kafka-bootstrap:9092
{{- else -}}
{{ fail "kafka.bootstrap is empty and strimzi is off: say where Kafka is" }}
{{- end -}}
{{- end -}}

{{- define "fraudsvc.kafkaUrl" -}}
{{- $files := dict -}}
{{- if .Values.kafka.passwordSecret.name -}}
{{- $_ := set $files "password_file" "/secrets/kafka/password" -}}
{{- end -}}
{{- if .Values.kafka.caSecret.name -}}
{{- $_ := set $files "ca_file" "/secrets/kafka/ca.pem" -}}
{{- end -}}
kafka://{{ include "fraudsvc.bootstrap" . }}/{{ .Values.kafka.prefix }}?event_partitions={{ int .Values.partitions.events }}&entity_partitions={{ int .Values.partitions.entities }}&replication={{ int .Values.kafka.replication }}{{ include "fraudsvc.query" .Values.kafka.settings }}{{ include "fraudsvc.query" $files }}
{{- end -}}

{{- define "fraudsvc.storeUrl" -}}
{{- $base := .Values.redis.url -}}
{{- if and (not $base) .Values.redisOperator.enabled -}}
{{- $base = printf "redis://%s-redis-leader:6379/fraud" (include "fraudsvc.name" .) -}}
{{- end -}}
{{- if not $base -}}
{{- fail "redis.url is empty, there is no redis.urlSecret, and redisOperator is off: say where states are" -}}
{{- end -}}
{{ $base }}?partitions={{ int .Values.partitions.entities }}&inputs={{ int .Values.partitions.events }}{{ include "fraudsvc.query" .Values.redis.settings }}
{{- end -}}

{{- define "fraudsvc.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: FRAUD_KAFKA
  value: {{ include "fraudsvc.kafkaUrl" . | quote }}
- name: FRAUD_STORE
{{- if .Values.redis.urlSecret.name }}
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.urlSecret.name }}, key: {{ .Values.redis.urlSecret.key }}}}
{{- else }}
  value: {{ include "fraudsvc.storeUrl" . | quote }}
{{- end }}
- name: FRAUD_LOG_LEVEL
  value: INFO
- name: FRAUD_TRACE_SHARE
  value: {{ .Values.telemetry.traceShare | quote }}
{{- if .Values.policy.configMap }}
- name: FRAUD_POLICY
  value: /policy/policy.toml
{{- end }}
{{- if .Values.idSecret.name }}
- name: FRAUD_ID_SECRET
  value: /secrets/id/secret
{{- end }}
{{- if .Values.telemetry.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.telemetry.endpoint | quote }}
- name: OTEL_METRICS_EXPORTER
  value: none
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fraudsvc.hostEnv" -}}
- name: FRAUD_LOG
  value: file:///data/log
- name: FRAUD_INDEX
  value: lmdb:///data/index
- name: FRAUD_ADDRESS
  value: 0.0.0.0:50051
{{- if .Values.tls.secret }}
- name: FRAUD_TLS_CERT
  value: /secrets/tls/tls.crt
- name: FRAUD_TLS_KEY
  value: /secrets/tls/tls.key
{{- if .Values.tls.mutual }}
- name: FRAUD_CLIENT_CA
  value: /secrets/tls/ca.crt
{{- end }}
{{- else }}
- name: FRAUD_PLAINTEXT
  value: "1"
{{- end }}
- name: FRAUD_BUNDLE
  value: /model/bundle
- name: FRAUD_PUBLIC_KEY
  value: /model/key.pub
- name: FRAUD_METRICS
  value: /metrics
- name: FRAUD_READ_MODEL
  value: sqlite:////data/readmodel.sqlite
{{- end -}}

{{- define "fraudsvc.asks" -}}
{{- if .Values.tls.secret -}}
exec: {command: [python, /opt/fraud/deploy/health.py, "localhost:50051", /secrets/tls/ca.crt{{ if .Values.tls.mutual }}, /secrets/tls/tls.crt, /secrets/tls/tls.key{{ end }}]}
{{- else -}}
grpc: {port: 50051, service: fraud.v1.FraudService}
{{- end -}}
{{- end -}}

{{- define "fraudsvc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "fraudsvc.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "fraudsvc.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if or .Values.kafka.passwordSecret.name .Values.kafka.caSecret.name }}
- {name: kafka-secrets, mountPath: /secrets/kafka, readOnly: true}
{{- end }}
{{- if .Values.idSecret.name }}
- {name: id-secret, mountPath: /secrets/id, readOnly: true}
{{- end }}
{{- if .Values.policy.configMap }}
- {name: policy, mountPath: /policy, readOnly: true}
{{- end }}
{{- if .Values.tls.secret }}
- {name: tls, mountPath: /secrets/tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fraudsvc.volumes" -}}
# For copies of the image's kernels, too, as the root is read-only (deploy/start.sh).
- {name: tmp, emptyDir: {sizeLimit: 2Gi}}
{{- if or .Values.kafka.passwordSecret.name .Values.kafka.caSecret.name }}
- name: kafka-secrets
  projected:
    defaultMode: 0440
    sources:
{{- with .Values.kafka.passwordSecret }}
{{- if .name }}
      - secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: password}]}
{{- end }}
{{- end }}
{{- with .Values.kafka.caSecret }}
{{- if .name }}
      - secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: ca.pem}]}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.idSecret }}
{{- if .name }}
- name: id-secret
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: secret}]}
{{- end }}
{{- end }}
{{- with .Values.tls.secret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if .Values.policy.configMap }}
- name: policy
  configMap: {name: {{ .Values.policy.configMap }}}
{{- end }}
{{- end -}}

{{- define "fraudsvc.placing" -}}
{{- $root := .root -}}
serviceAccountName: {{ include "fraudsvc.name" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- include "fraudsvc.podSecurity" $root | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $root.Values.topology.zoneKey }}
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" $root.Values.topology.strict }}
    labelSelector:
      matchLabels: {{- include "fraudsvc.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: {{ $root.Values.topology.hostKey }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "fraudsvc.selector" . | nindent 8 }}
{{- end -}}
