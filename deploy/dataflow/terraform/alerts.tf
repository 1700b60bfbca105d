# Two alerts: a build failed, and no build moved CURRENT for a day. Cloud Monitoring has no metric for the age of an
# object, so the second counts the line that a build writes to its log when it has moved CURRENT.

resource "google_monitoring_alert_policy" "failed" {
  display_name          = "grainhash: a build failed"
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "a Dataflow job of grainhash failed"
    condition_threshold {
      filter          = "resource.type = \"dataflow_job\" AND metric.type = \"dataflow.googleapis.com/job/is_failed\" AND resource.labels.job_name = starts_with(\"grainhash-\")"
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"
      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    content = "What was served stays served. The job's log says why; deploy/dataflow/README.md says how to resume."
  }
}

resource "google_logging_metric" "served" {
  name        = "grainhash/served"
  description = "How often CURRENT of the index was moved by a job"
  filter      = "resource.type = \"dataflow_step\" AND \"gs://${var.bucket}/${var.index}\" AND \"is served\""

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }
}

resource "google_monitoring_alert_policy" "stale" {
  display_name          = "grainhash: CURRENT is stale"
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "no build moved CURRENT for 25 hours"
    condition_threshold {
      filter                  = "resource.type = \"dataflow_job\" AND metric.type = \"logging.googleapis.com/user/${google_logging_metric.served.name}\""
      comparison              = "COMPARISON_LT"
      threshold_value         = 1
      duration                = "3600s" # at least a minute, or missing data count for nothing
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"
      aggregations {
        alignment_period     = "86400s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    content = "The nightly build did not start, is still running, failed, or was beaten by another build."
  }
}
