"""Small robots that several tests share."""

# A servo that is far too stiff for the light body that it turns: it blows up within a few steps.
EXPLODES = """<mujoco><option timestep="0.005"/><worldbody><body pos="0 0 1"><joint name="a" axis="0 1 0"/>
  <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.3"/>
  <body pos="0.3 0 0"><joint name="b" axis="1 0 0"/>
    <geom type="box" size="0.005 0.03 0.005" mass="0.002"/></body></body></worldbody>
  <actuator><motor joint="a" gear="80" ctrlrange="-1 1"/>
    <position joint="b" kp="4000" ctrlrange="-1 1"/></actuator></mujoco>"""

LEG = """<body pos="{x} {y} 0"><joint name="{name}" axis="0 1 0" damping="0.3" armature="0.005"/>
  <geom class="{kind}" type="capsule" fromto="0 0 0 0 0 -0.25" size="0.02" mass="0.2"/></body>"""
LEGS = (("a", 0.1, 0.1), ("b", -0.1, 0.1), ("c", 0.0, -0.1))


def tripod(world="", height=0.29, option="", default="", gravcomp=0, extra="", free="<freejoint/>"):
    """A body on three legs of 0.27 m, its base `height` m over the world's origin, in a `world` of geoms."""
    legs = "".join(LEG.format(name=name, x=x, y=y, kind="foot") for name, x, y in LEGS)
    motors = "".join(f'<position joint="{name}" kp="10" ctrlrange="-1 1"/>' for name, _, _ in LEGS)
    return f"""<mujoco><option timestep="0.004" {option}/>
      <default>{default}<default class="foot"><geom contype="1" conaffinity="1"/></default></default>
      <worldbody>{world}
        <body name="base" pos="0 0 {height}" gravcomp="{gravcomp}">{free}
          <geom class="foot" type="box" size="0.12 0.1 0.04" mass="1"/>{legs}</body>
      </worldbody><actuator>{motors}</actuator>{extra}</mujoco>"""
