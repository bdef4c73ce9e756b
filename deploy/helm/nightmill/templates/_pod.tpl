{{/* Parts that all pods share. Secrets are files; the environment names them. */}}

{{- define "nightmill.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "nightmill.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nightmill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "nightmill.storeEnv" -}}
- name: NIGHTMILL_STORE_FILE
  value: /run/secrets/nightmill/store/url
{{- end -}}

{{- define "nightmill.env" -}}
{{ include "nightmill.storeEnv" . }}
- name: NIGHTMILL_CONFIG
  value: /etc/nightmill/nightmill.toml
- name: NIGHTMILL_API__DRAIN_S
  value: {{ .Values.drainSeconds | quote }}
- name: NIGHTMILL_BLOBS__URL
  value: {{ .Values.blobs.url | quote }}
{{- if .Values.blobs.existingSecret }}
- name: NIGHTMILL_BLOBS__ACCESS_KEY_ID_FILE
  value: /run/secrets/nightmill/blobs/access_key_id
- name: NIGHTMILL_BLOBS__SECRET_ACCESS_KEY_FILE
  value: /run/secrets/nightmill/blobs/secret_access_key
{{- end }}
{{- if .Values.upstream.url }}
- name: NIGHTMILL_UPSTREAM__URL
  value: {{ .Values.upstream.url | quote }}
- name: NIGHTMILL_UPSTREAM__CONCURRENCY
  value: {{ .Values.upstream.concurrency | quote }}
{{- end }}
{{- if .Values.upstream.existingSecret }}
- name: NIGHTMILL_UPSTREAM__API_KEY_FILE
  value: /run/secrets/nightmill/upstream/api_key
{{- end }}
{{- end -}}

{{- define "nightmill.storeVolume" -}}
- name: store
  secret:
    secretName: {{ .Values.store.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ .Values.store.key }}, path: url}]
{{- end -}}

{{- define "nightmill.volumes" -}}
{{ include "nightmill.storeVolume" . }}
- name: settings
  configMap: {name: {{ include "nightmill.fullname" . }}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 256Mi}
{{- if .Values.blobs.existingSecret }}
- name: blobs
  secret:
    secretName: {{ .Values.blobs.existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.blobs.accessKeyIdKey }}, path: access_key_id}
      - {key: {{ .Values.blobs.secretAccessKeyKey }}, path: secret_access_key}
{{- end }}
{{- if .Values.upstream.existingSecret }}
- name: upstream
  secret:
    secretName: {{ .Values.upstream.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ .Values.upstream.key }}, path: api_key}]
{{- end }}
{{- end -}}

{{- define "nightmill.volumeMounts" -}}
- {name: store, mountPath: /run/secrets/nightmill/store, readOnly: true}
- {name: settings, mountPath: /etc/nightmill, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.blobs.existingSecret }}
- {name: blobs, mountPath: /run/secrets/nightmill/blobs, readOnly: true}
{{- end }}
{{- if .Values.upstream.existingSecret }}
- {name: upstream, mountPath: /run/secrets/nightmill/upstream, readOnly: true}
{{- end }}
{{- end -}}

{{/* Takes a dict: root, component, values (its part of the values), args, and the rest of its container. */}}
{{- define "nightmill.deployment" -}}
{{- $root := .root -}}
{{- $names := list .root .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "nightmill.fullname" $root }}-{{ .component }}
  labels:
    {{- include "nightmill.labels" $names | nindent 4 }}
spec:
  {{- if not .isScaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "nightmill.selectorLabels" $names | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "nightmill.labels" $names | nindent 8 }}
      annotations:
        checksum/settings: {{ toToml $root.Values.settings | sha256sum }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "nightmill.serviceAccountName" $root }}
      automountServiceAccountToken: false
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "nightmill.podSecurity" $root | nindent 8 }}
      # Longer than the drain and the pause before it: attempts in flight finish before Kubernetes kills the pod.
      terminationGracePeriodSeconds: {{ add $root.Values.drainSeconds 15 }}
      topologySpreadConstraints:
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "nightmill.selectorLabels" $names | nindent 14 }}
        {{- end }}
      containers:
        - name: nightmill
          image: {{ include "nightmill.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: {{ toJson .args }}
          env:
            {{- include "nightmill.env" $root | nindent 12 }}
            {{- with .env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
            {{- with $root.Values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with .container }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "nightmill.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            {{- include "nightmill.volumeMounts" $root | nindent 12 }}
      volumes:
        {{- include "nightmill.volumes" $root | nindent 8 }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}
