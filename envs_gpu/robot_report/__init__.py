"""What a user should know about a robot before training it: `pi-envs check --model FILE`."""

from envs_gpu.robot_report.report import RobotReport, report_on

__all__ = ["RobotReport", "report_on"]
