"""Fields of a JobSet, version v1alpha2, as its documentation lists them.

From "JobSet v1alpha2" of the JobSet project's API reference. The jobs inside are those
of Kubernetes and are checked against its own published schema.
"""

from __future__ import annotations

_NAMES = {'type': 'array', 'items': {'type': 'string'}}
_OPERATOR = {
  'type': 'object',
  'properties': {'operator': {'enum': ['All', 'Any']}, 'targetReplicatedJobs': _NAMES},
  'required': ['operator'],
  'additionalProperties': False,
}
_RULE = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
    'action': {
      'enum': [
        'FailJobSet',
        'RestartJobSet',
        'RestartJobSetAndIgnoreMaxRestarts',
        'RestartJob',
        'RestartJobAndIgnoreMaxRestarts',
      ]
    },
    'onJobFailureReasons': {
      'type': 'array',
      'uniqueItems': True,
      # Reasons for which Kubernetes fails a job.
      'items': {
        'enum': [
          'BackoffLimitExceeded',
          'DeadlineExceeded',
          'FailedIndexes',
          'MaxFailedIndexesExceeded',
          'PodFailurePolicy',
        ]
      },
    },
    'onJobFailureMessagePatterns': _NAMES,
    'targetReplicatedJobs': _NAMES,
  },
  'required': ['name', 'action'],
  'additionalProperties': False,
}
JOBSET = {
  'type': 'object',
  'properties': {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': {
      'type': 'object',
      'properties': {
        'name': {'type': 'string', 'pattern': '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'}
      },
      'required': ['name'],
    },
    'spec': {
      'type': 'object',
      'properties': {
        'replicatedJobs': {
          'type': 'array',
          'minItems': 1,
          'items': {
            'type': 'object',
            'properties': {
              'name': {'type': 'string'},
              'groupName': {'type': 'string'},
              'replicas': {'type': 'integer', 'minimum': 1},
              'template': {
                'type': 'object',
                'properties': {
                  'metadata': {'type': 'object'},
                  'spec': {'type': 'object'},
                },
                'required': ['spec'],
                'additionalProperties': False,
              },
              'dependsOn': {'type': 'array'},
            },
            'required': ['name', 'template'],
            'additionalProperties': False,
          },
        },
        'network': {
          'type': 'object',
          'properties': {
            'enableDNSHostnames': {'type': 'boolean'},
            'publishNotReadyAddresses': {'type': 'boolean'},
            'subdomain': {'type': 'string'},
          },
          'additionalProperties': False,
        },
        'successPolicy': _OPERATOR,
        'failurePolicy': {
          'type': 'object',
          'properties': {
            'maxRestarts': {'type': 'integer', 'minimum': 0},
            'restartStrategy': {
              'enum': ['Recreate', 'BlockingRecreate', 'InPlaceRestart']
            },
            'rules': {'type': 'array', 'items': _RULE},
          },
          'additionalProperties': False,
        },
        'startupPolicy': {'type': 'object'},
        'suspend': {'type': 'boolean'},
        'coordinator': {'type': 'object'},
        'managedBy': {'type': 'string'},
        'ttlSecondsAfterFinished': {'type': 'integer', 'minimum': 0},
        'volumeClaimPolicies': {'type': 'array'},
      },
      'required': ['replicatedJobs'],
      'additionalProperties': False,
    },
  },
  'required': ['apiVersion', 'kind', 'metadata', 'spec'],
  'additionalProperties': False,
}
