"""The checks: functions of a subject that raise Nonconformity or SkipCheck."""
